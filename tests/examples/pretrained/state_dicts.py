"""State dicts of other projects in small: torchvision's ResNet, VisTR, Deformable DETR."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from defvis.config import BackboneConfig, ModelConfig
from defvis.presets import preset

C, HEADS, SLOTS, FRAMES, CLASSES = 48, 4, 3, 4, 5
BACKBONE = BackboneConfig(
    layer_type="bottleneck",
    embedding_size=8,
    hidden_sizes=(16, 32, 64, 128),
    depths=(1, 2, 1, 1),
    out_features=("stage1", "stage2", "stage3", "stage4"),
    frozen_norm=True,
    frozen_stages=1,
)


def tiny(name: str, **changes: object) -> ModelConfig:
    """A preset's model with small numbers."""
    sizes = {
        "backbone": BACKBONE, "num_classes": CLASSES, "num_frames": FRAMES, "num_slots": SLOTS,
        "embed_dim": C, "num_heads": HEADS, "encoder_layers": 2, "decoder_layers": 2,
        "feedforward_dim": 32, "num_points": 12 if name.startswith("paper") else 6,
    }  # fmt: skip
    return replace(preset(name).model, **{**sizes, **changes})  # type: ignore[arg-type]


def resnet(prefix: str = "", sizes: BackboneConfig = BACKBONE) -> dict[str, torch.Tensor]:
    """A torchvision ResNet's state dict, from its own numbering."""
    state = {}

    def conv(name: str, norm: str, *shape: int) -> None:
        state[f"{prefix}{name}.weight"] = torch.randn(shape) / math.prod(shape[1:]) ** 0.5
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{prefix}{norm}.{part}"] = torch.rand(shape[0])
        state[f"{prefix}{norm}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", "bn1", sizes.embedding_size, 3, 7, 7)
    before = sizes.embedding_size
    for stage, (width, depth) in enumerate(
        zip(sizes.hidden_sizes, sizes.depths, strict=True), start=1
    ):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            if sizes.layer_type == "bottleneck":
                conv(f"{name}.conv1", f"{name}.bn1", width // 4, before, 1, 1)
                conv(f"{name}.conv2", f"{name}.bn2", width // 4, width // 4, 3, 3)
                conv(f"{name}.conv3", f"{name}.bn3", width, width // 4, 1, 1)
            else:
                conv(f"{name}.conv1", f"{name}.bn1", width, before, 3, 3)
                conv(f"{name}.conv2", f"{name}.bn2", width, width, 3, 3)
            if block == 0 and (stage > 1 or width != before):
                conv(f"{name}.downsample.0", f"{name}.downsample.1", width, before, 1, 1)
            before = width
    return state


def linear(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}


def norm(name: str, size: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.rand(size), f"{name}.bias": torch.rand(size)}


def dense(name: str) -> dict[str, torch.Tensor]:
    return {
        f"{name}.in_proj_weight": torch.randn(3 * C, C),
        f"{name}.in_proj_bias": torch.randn(3 * C),
        **linear(f"{name}.out_proj", C, C),
    }


def deformable(name: str, samples: int) -> dict[str, torch.Tensor]:
    return {
        **linear(f"{name}.sampling_offsets", samples * 2, C),
        **linear(f"{name}.attention_weights", samples, C),
        **linear(f"{name}.value_proj", C, C),
        **linear(f"{name}.output_proj", C, C),
    }


def vistr(frame_levels: int = 0) -> dict[str, torch.Tensor]:
    """VisTR's state dict, or with `frame_levels` that of the released Deformable VisTR encoder."""
    state = resnet("vistr.backbone.0.body.")
    state = {name: value for name, value in state.items() if "tracked" not in name}
    for part, norms in (("encoder", 2), ("decoder", 3)):
        for i in range(2):
            layer = f"vistr.transformer.{part}.layers.{i}"
            if part == "encoder" and frame_levels:
                state |= deformable(f"{layer}.self_attn", HEADS * frame_levels * 6)
            else:
                state |= dense(f"{layer}.self_attn")
            if part == "decoder":
                state |= dense(f"{layer}.multihead_attn")
            state |= linear(f"{layer}.linear1", 32, C) | linear(f"{layer}.linear2", C, 32)
            for j in range(1, norms + 1):
                state |= norm(f"{layer}.norm{j}", C)
    mid = (C + HEADS, 24, 24, 24)  # C / 2 and so on, but this model keeps at least 24 channels
    state |= {
        **norm("vistr.transformer.decoder.norm", C),
        **linear("vistr.class_embed", CLASSES + 2, C),  # unused 0, classes, no object
        **linear("vistr.bbox_embed.layers.0", C, C),
        **linear("vistr.bbox_embed.layers.1", C, C),
        **linear("vistr.bbox_embed.layers.2", 4, C),
        "vistr.query_embed.weight": torch.randn(SLOTS * FRAMES, C),
        **linear("vistr.input_proj", C, 128, 1, 1),
        **linear("bbox_attention.q_linear", C, C),
        **linear("bbox_attention.k_linear", C, C),
        **linear("mask_head.lay1", mid[0], mid[0], 3, 3),
        **norm("mask_head.gn1", mid[0]),
        **linear("mask_head.conv_offset", 18, mid[3], 1, 1),
        "mask_head.dcn.weight": torch.randn(24, mid[3], 3, 3),
        **norm("mask_head.gn5", 24),
    }
    for i, channels in zip((2, 3, 4), (64, 32, 16), strict=True):
        state |= linear(f"mask_head.lay{i}", mid[i - 1], mid[i - 2], 3, 3)
        state |= norm(f"mask_head.gn{i}", mid[i - 1])
        state |= linear(f"mask_head.adapter{i - 1}", mid[i - 1], channels, 1, 1)
    for i, channels in ((0, 24), (3, 12), (6, 12)):
        state |= linear(f"insmask_head.{i}", 12, channels, 3, 3, 3)
        state |= norm(f"insmask_head.{i + 1}", 12)
    return state | linear("insmask_head.9", 1, 12, 1, 1, 1)


def deformable_detr(levels: int = 4) -> dict[str, torch.Tensor]:
    """Deformable DETR's state dict with P = 4 points: a head per layer, though all the same."""
    state = resnet("backbone.0.body.")
    state = {name: value for name, value in state.items() if "tracked" not in name}
    for part in ("encoder", "decoder"):
        for i in range(2):
            layer = f"transformer.{part}.layers.{i}"
            first = "self_attn" if part == "encoder" else "cross_attn"
            state |= deformable(f"{layer}.{first}", HEADS * levels * 4)
            if part == "decoder":
                state |= dense(f"{layer}.self_attn") | norm(f"{layer}.norm3", C)
            state |= linear(f"{layer}.linear1", 32, C) | linear(f"{layer}.linear2", C, 32)
            state |= norm(f"{layer}.norm1", C) | norm(f"{layer}.norm2", C)
            state |= linear(f"class_embed.{i}", 91, C)
            for j, outputs in enumerate((C, C, 4)):
                state |= linear(f"bbox_embed.{i}.layers.{j}", outputs, C)
    for level, channels in enumerate((32, 64, 128, 128)[-levels:]):
        kernel = (3, 3) if level == 3 else (1, 1)
        state |= linear(f"input_proj.{level}.0", C, channels, *kernel)
        state |= norm(f"input_proj.{level}.1", C)
    return {
        **state,
        "transformer.level_embed": torch.randn(levels, C),
        **linear("transformer.reference_points", 2, C),
        "query_embed.weight": torch.randn(30, 2 * C),
    }
