"""Tiny models of the fifteen families, with random weights, and what they compute."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

transformers = pytest.importorskip("transformers")

BATCH, HEIGHT, WIDTH = 2, 64, 96  # most have levels of (8, 12), (4, 6) and (2, 3) cells


@dataclass(frozen=True, eq=False)
class Family:
    """A model family of transformers.

    Attributes:
        name: Of its module in `transformers.models`.
        model: The class that is made.
        config: What makes it small.
        layers: The fields of its configuration that count the layers with deformable attention.
        backbone: Makes the configuration of the backbone.
        inputs: Makes the inputs beside images.
    """

    name: str
    model: str
    config: dict[str, Any]
    layers: tuple[str, ...] = ("decoder_layers",)
    backbone: Callable[[], Any] = lambda: _resnet(2, 3, 4)
    inputs: Callable[[], dict[str, Tensor]] = dict

    def __str__(self) -> str:
        method = self.config.get("decoder_method")
        return self.name if method is None else f"{self.name}-{method}"


def _resnet(*stages: int) -> Any:
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=[f"stage{stage}" for stage in stages],
    )


def _swin(*stages: int) -> Any:
    return transformers.SwinConfig(
        image_size=WIDTH,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        drop_path_rate=0.0,
        out_features=[f"stage{stage}" for stage in stages],
    )


def _vit(kind: str, **options: Any) -> Any:
    return getattr(transformers, kind)(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        out_indices=[1, 2],
        **options,
    )


def _tokens(rows: int = BATCH) -> Tensor:
    return torch.arange(5, 5 + 6 * rows).view(rows, 6)


def _sentences() -> Tensor:
    """Two phrases of two words, in the tokens of BERT."""
    return torch.tensor([[101, 5, 6, 1012, 7, 8, 1012, 102]] * BATCH)


def _mask() -> Tensor:
    """Images of which the second is smaller."""
    mask = torch.ones(BATCH, HEIGHT, WIDTH, dtype=torch.int64)
    mask[1, :, 70:] = 0
    mask[1, 50:] = 0
    return mask


_LABELS = 3
_DETR = {
    "d_model": 32,
    "num_labels": _LABELS,
    "num_queries": 7,
    "dropout": 0.0,
    "encoder_layers": 2,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 4,
    "decoder_layers": 3,
    "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2,
    "decoder_n_points": 3,
}
_GROUNDING = {
    **_DETR,
    "encoder_n_points": 2,
    "num_feature_levels": 3,
    "max_text_len": 8,
    "fusion_droppath": 0.0,
    "use_timm_backbone": False,
    "text_config": {
        "model_type": "bert",
        "vocab_size": 1013,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
_RT_DETR = {
    **_DETR,
    "encoder_layers": 1,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 2,
}
# Boxes are small, and samples stay near them; here, some leave the image.
_RT_DETR_V2 = {**_RT_DETR, "decoder_offset_scale": 4.0}
_RAGGED = {**_RT_DETR_V2, "decoder_n_points": [3, 6, 3]}
_LW_DETR = {
    **{name: _DETR[name] for name in ("d_model", "num_labels", "num_queries", "dropout")},
    "decoder_layers": 3,
    "decoder_ffn_dim": 16,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
    "decoder_n_points": 3,
    "group_detr": 2,
    "c2f_num_blocks": 1,
}
_FORMER = {
    "num_labels": _LABELS,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "dim_feedforward": 16,
    "num_attention_heads": 4,
    "num_queries": 7,
    "dropout": 0.0,
}
_BOTH = ("encoder_layers", "decoder_layers")

FAMILIES = (
    Family(
        "deformable_detr",
        "DeformableDetrForObjectDetection",
        {
            **_DETR,
            "encoder_n_points": 2,
            "num_feature_levels": 3,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "with_box_refine": True,
            "two_stage": True,
            "two_stage_num_proposals": 7,
        },
        _BOTH,
        inputs=lambda: {"pixel_mask": _mask()},
    ),
    Family("rt_detr", "RTDetrForObjectDetection", _RT_DETR),
    Family(
        "grounding_dino",
        "GroundingDinoForObjectDetection",
        _GROUNDING,
        _BOTH,
        lambda: _swin(2, 3, 4),
        lambda: {"pixel_mask": _mask(), "input_ids": _sentences()},
    ),
    Family(
        "mm_grounding_dino",
        "MMGroundingDinoForObjectDetection",
        _GROUNDING,
        _BOTH,
        lambda: _swin(2, 3, 4),
        lambda: {"pixel_mask": _mask(), "input_ids": _sentences()},
    ),
    Family(
        "omdet_turbo",
        "OmDetTurboForObjectDetection",
        {
            "image_size": WIDTH,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "apply_layernorm_after_vision_backbone": False,
            "num_queries": 7,
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [16, 32, 64],
            "vision_features_channels": [32, 32, 32],
            "encoder_attention_heads": 2,
            "encoder_dim_feedforward": 16,
            "decoder_hidden_dim": 32,
            "decoder_num_heads": 4,
            "decoder_num_layers": 3,
            "decoder_dim_feedforward": 16,
            "decoder_num_points": 3,
            "class_embed_dim": 16,
            "text_projection_in_dim": 16,
            "text_projection_out_dim": 16,
            "task_encoder_hidden_dim": 16,
            "text_config": {
                "model_type": "clip_text_model",
                "vocab_size": 100,
                "hidden_size": 16,
                "intermediate_size": 16,
                "projection_dim": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 8,
                "bos_token_id": 0,
                "eos_token_id": 1,
            },
        },
        ("decoder_num_layers",),
        lambda: _swin(2, 3, 4),
        lambda: {
            "classes_input_ids": _tokens(3),
            "classes_attention_mask": torch.ones_like(_tokens(3)),
            "tasks_input_ids": _tokens(),
            "tasks_attention_mask": torch.ones_like(_tokens()),
            "classes_structure": torch.tensor([2, 1]),
        },
    ),
    Family(
        "lw_detr",
        "LwDetrForObjectDetection",
        {**_LW_DETR, "projector_scale_factors": [2.0, 0.5]},
        backbone=lambda: _vit("LwDetrViTConfig", num_windows=4, window_block_indices=[0]),
        inputs=lambda: {"pixel_mask": _mask()},
    ),
    Family(
        "rf_detr",
        "RfDetrForObjectDetection",
        _LW_DETR,
        backbone=lambda: _vit("RfDetrDinov2Config", num_windows=2, patch_size=8),
        inputs=lambda: {"pixel_mask": _mask()},
    ),
    Family(
        "pp_doclayout_v2",
        "PPDocLayoutV2ForObjectDetection",
        {
            **_RT_DETR,
            "class_thresholds": [0.2] * _LABELS,
            "class_order": [2, 0, 1],
            "reading_order_config": {
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "intermediate_size": 16,
                "coordinate_size": 3,
                "shape_size": 2,
                "num_classes": _LABELS,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                # 100 would turn a box's last digits into the phase of a sine.
                "relation_bias_scale": 1,
            },
        },
    ),
    Family(
        "pp_doclayout_v3",
        "PPDocLayoutV3ForObjectDetection",
        {**_RT_DETR, "x4_feat_dim": 8, "mask_feature_channels": [8, 8], "gp_dropout_value": 0.0},
        backbone=lambda: _resnet(1, 2, 3, 4),
    ),
    Family(
        "pp_doclayout_v4",
        "PPDocLayoutV4ForObjectDetection",
        {**_RT_DETR, "gp_dropout_value": 0.0},
    ),
    Family(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        {**_FORMER, "feature_size": 32, "mask_feature_size": 16},
        ("encoder_layers",),
        lambda: _swin(1, 2, 3, 4),
    ),
    Family(
        "oneformer",
        "OneFormerForUniversalSegmentation",
        {**_FORMER, "conv_dim": 32, "mask_dim": 32, "task_seq_len": 5, "query_dec_layers": 1},
        ("encoder_layers",),
        lambda: _swin(1, 2, 3, 4),
        lambda: {"task_inputs": torch.ones(BATCH, 5)},
    ),
    Family("rt_detr_v2", "RTDetrV2ForObjectDetection", _RT_DETR_V2),
    Family("d_fine", "DFineForObjectDetection", _RAGGED),
    Family("deimv2", "Deimv2ForObjectDetection", _RAGGED),
)


# The method that reads the nearest cell.
_DISCRETE = tuple(
    dataclasses.replace(family, config={**family.config, "decoder_method": "discrete"})
    for family in FAMILIES
    if family.name in ("rt_detr_v2", "d_fine", "deimv2")
)
each_case = pytest.mark.parametrize("family", [*FAMILIES, *_DISCRETE], ids=str)
# One of each kind: the operator is a class, a function of the module, or an attribute.
each_kind = pytest.mark.parametrize(
    "family",
    [each for each in FAMILIES if each.name in ("rt_detr", "mask2former", "d_fine")],
    ids=str,
)


def find(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def make(family: Family) -> nn.Module:
    """A model in evaluation mode, always the same; the test is skipped where there is none."""
    if not hasattr(transformers, family.model):
        pytest.skip(f"transformers {transformers.__version__} has no {family.model}")
    return copy.deepcopy(_made(family))


@functools.cache
def _made(family: Family) -> nn.Module:
    model_class = getattr(transformers, family.model)
    config = model_class.config_class(**family.config, backbone_config=family.backbone())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = model_class(config).eval()
        _draw_weights(model)
    return model


@torch.no_grad()
def _draw_weights(model: nn.Module) -> None:
    """Draws all weights anew, so that attention matters, and queries sample here and there."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            parameter.normal_(std=(4.0 if "sampling_offsets" in name else 1.0) * fan_in**-0.5)
        elif name.endswith(".weight"):  # of a norm
            parameter.uniform_(0.5, 1.5)


def num_layers(model: nn.Module, family: Family) -> int:
    """How often the model attends deformably, by its configuration."""
    return sum(getattr(model.config, each) for each in family.layers)


def outputs(model: nn.Module, family: Family, **options: Any) -> list[Tensor]:
    """All floating-point outputs for the same images."""
    dtype = next(model.parameters()).dtype
    images = torch.randn(BATCH, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    found = model(pixel_values=images.to(dtype), **family.inputs(), **options)
    return [tensor for tensor in _tensors(dict(found)) if tensor.is_floating_point()]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(branch)


def gradients(model: nn.Module, found: list[Tensor]) -> dict[str, Tensor | None]:
    """The gradients of all parameters for a random sum of the outputs."""
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in found:
        if tensor.requires_grad:
            factors = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            # Logits of masked words are infinite.
            total = total + (torch.where(tensor.isfinite(), tensor, 0) * factors).sum()
    model.zero_grad()
    total.backward(retain_graph=True)  # OmDet-Turbo keeps what it computed of words
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal_outputs(found: list[Tensor], expected: list[Tensor], rtol: float) -> None:
    """Checks each output relative to the largest of its entries."""
    assert len(found) == len(expected)
    for tensor, other in zip(found, expected, strict=True):
        largest = other[other.isfinite()].abs().amax().item()
        torch.testing.assert_close(tensor, other, rtol=0.0, atol=rtol * largest)


def assert_equal_gradients(
    found: dict[str, Tensor | None], expected: dict[str, Tensor | None], rtol: float
) -> None:
    """Checks each gradient relative to the largest of its module: that of some biases is noise."""
    largest: dict[str, float] = {}
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None)
        if gradient is not None:
            module = name.rpartition(".")[0]
            largest[module] = max(largest.get(module, 0.0), gradient.abs().max().item())
    for name, gradient in expected.items():
        if gradient is not None:
            atol = rtol * largest[name.rpartition(".")[0]]
            torch.testing.assert_close(found[name], gradient, rtol=0.0, atol=atol)


class Calls(TorchDispatchMode):
    """Counts the calls of the operator."""

    number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.number += func is torch.ops.stdeform.st_deform_attn.default
        return func(*args, **(kwargs or {}))
