"""The sizes of the model that a file of weights was made for, as fields of the config."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from defvis.config import BackboneConfig, Config
from defvis.config_io import flatten
from defvis.pretrained.resnet_sizes import resnet_name, resnet_sizes
from defvis.pretrained.weights_file import WeightsFile

# Fewer cells than this along the short side of a frame are too coarse for boxes and masks.
_LEAST_CELLS = 8
# Attention heads of all models of the DETR family that were published.
_HEADS = 8

Shapes = Mapping[str, tuple[int, ...]]


def sizes_of(
    file: WeightsFile, config: Config, fixed: Collection[str] = (), short_side: int = 0
) -> dict[str, Any]:
    """The fields of the config with which most of a file fits, by path, in the form of JSON.

    Args:
        file: The weights.
        config: What is kept where the file leaves a choice.
        fixed: Fields that are kept in any case, by path.
        short_side: Short side of the frames as the model sees them, in pixels; 0 if not known.

    Returns:
        For example {"model.embed_dim": 256, ...}; empty if nothing in the file is known.

    Raises:
        ValueError: If its backbone is of a kind that this model does not have.
    """
    if file.config is not None:
        fields = flatten({"model": file.config.model.to_dict()})
        del fields["model.num_classes"]
        if file.config.data.short_side:  # Objects of another size are others to a trained model.
            fields["data.short_side"] = file.config.data.short_side
            fields["data.long_side"] = file.config.data.long_side
        return fields
    shapes = {name: tuple(value.shape) for name, value in file.entries.items()}
    if file.source == "defvis":
        sizes = _own_sizes(shapes, config)
    elif file.source in ("vistr", "deformable-detr"):
        sizes = _detr_sizes(file, shapes, config)
    else:
        sizes = {}
    backbone = None if config.model.backbone.name else resnet_sizes(file.entries, file.source)
    if backbone is not None:
        used = list(config.model.backbone.out_features)
        if "model.backbone.out_features" not in fixed:
            used = _used_stages(backbone, config, shapes, file.source, short_side)
        fields = {**backbone.to_dict(), "out_features": used}
        del fields["name"]
        if file.source != "defvis":  # Stages after the last that is used would only cost time.
            last = max(
                (backbone.out_features.index(s) + 1 for s in used if s in backbone.out_features),
                default=1,
            )
            for name in ("hidden_sizes", "depths"):
                fields[name] = fields[name][:last]
        else:  # Whether a part was frozen does not stand in its shapes.
            del fields["frozen_stages"]
            fields["frozen_norm"] = not any(name.endswith("tracked") for name in file.entries)
        sizes |= flatten(fields, "model.backbone.")
    return sizes


def describe(file: WeightsFile) -> str:
    """What a file is, in words."""
    if file.config is not None:
        return "a run's checkpoint"
    try:
        backbone = resnet_sizes(file.entries, file.source)
    except ValueError:
        backbone = None
    resnet = "a ResNet" if backbone is None else f"a {resnet_name(backbone)}"
    return {
        "torchvision": f"{resnet} as torchvision names it",
        "transformers": f"{resnet} as transformers names it",
        "vistr": f"VisTR or DETR with {resnet}",
        "deformable-detr": f"Deformable DETR with {resnet}",
    }.get(file.source, "a state dict")


def _used_stages(
    backbone: BackboneConfig, config: Config, shapes: Shapes, source: str, short_side: int
) -> list[str]:
    """The stages to use: those of the config if it is of a ResNet as deep, else by stride.

    The last ones feed the encoder, one for each level. The cells of the finest are of 16 pixels,
    or of 8 where frames are small, or of the size that the file's own projection was trained for.
    """
    stages = backbone.out_features
    own = config.model.backbone
    if source == "defvis" and len(shapes.get("project.0.weight", ())) == 4:
        laterals = sum(
            bool(re.fullmatch(r"mask_features\.laterals\.\d+\.weight", name)) for name in shapes
        )
        inputs = [shapes["project.0.weight"][1], *_coarser(shapes)]
        fed = [n for n, width in enumerate(backbone.hidden_sizes) if width in inputs]
        fed = fed[: len(inputs)] or [len(stages) - 1]
        chosen = (*range(max(0, fed[0] - laterals), fed[0]), *fed)
        return [stages[number] for number in chosen]
    if len(own.hidden_sizes) >= len(stages) and set(own.out_features) <= set(stages):
        return list(own.out_features)
    levels = config.model.levels
    last = (2 if 0 < short_side < 16 * _LEAST_CELLS else 3) + levels - 1
    projected = {
        shape[1]
        for name, shape in shapes.items()
        if re.fullmatch(r"input_proj(\.\d\.0)?\.weight", name) and shape[2:] == (1, 1)
    }
    fitting = [n for n, width in enumerate(backbone.hidden_sizes, 1) if width in projected]
    whole = [n for n in fitting if all(n - level in fitting for level in range(levels))]
    if fitting:
        last = min(whole or fitting, key=lambda number: abs(number - last))
    return list(stages[:last])


def _detr_sizes(file: WeightsFile, shapes: Shapes, config: Config) -> dict[str, Any]:
    """Of the transformers of DETR, VisTR and Deformable DETR."""
    hidden = shapes.get("transformer.encoder.layers.0.linear1.weight", ())
    if len(hidden) != 2:
        return {}
    width = hidden[1]
    heads = file.num_heads or (_HEADS if width % _HEADS == 0 else config.model.num_heads)
    normed = any(re.fullmatch(r"input_proj\.\d\.1\.weight", name) for name in shapes)
    refined = any(name.startswith("transformer.decoder.bbox_embed") for name in shapes)
    sizes: dict[str, Any] = {
        "model.embed_dim": width,
        "model.num_heads": heads,
        "model.feedforward_dim": hidden[0],
        "model.encoder_layers": _count(shapes, r"transformer\.encoder\.layers\.(\d+)\..*"),
        "model.decoder_layers": _count(shapes, r"transformer\.decoder\.layers\.(\d+)\..*"),
        "model.project_groups": math.gcd(32, width) if normed else 0,
        "model.queries": "free",
        "model.refine_boxes": refined,
        "model.shared_heads": not refined,
        "model.decoder_norm": "transformer.decoder.norm.weight" in shapes,
    }
    sampled = shapes.get("transformer.encoder.layers.0.self_attn.attention_weights.bias")
    if file.source == "deformable-detr":  # Its points become points of either kind.
        for part in ("encoder_attention", "decoder_attention"):
            dense = flatten(config.to_dict())[f"model.{part}"] == "dense"
            sizes |= {f"model.{part}": "deformable"} if dense else {}
    elif sampled:  # The released encoder, whose levels are the frames and one more.
        points = config.model.num_points if config.model.encoder_attention == "frames" else 6
        levels = sampled[0] // (heads * points)
        sizes |= {
            "model.encoder_attention": "frames",
            "model.decoder_attention": "dense",
            "model.num_points": points,
            "model.num_frames": max(1, levels - 1),
            "model.levels": 1,
        }
    return sizes


def _own_sizes(shapes: Shapes, config: Config) -> dict[str, Any]:
    """Of a state dict of this program, as far as shapes tell.

    They do not tell the number of heads, whether boxes are refined, whether attention is
    "own-frame", nor whether levels differ in their points: these stay.
    """
    projected = shapes.get("project.0.weight", ())
    if len(projected) != 4:
        return {}
    model, width = config.model, projected[0]
    hidden = "layers.0.feedforward.layers.0.weight"
    layers = _count(shapes, r"decoder\.layers\.(\d+)\..*")
    groups = model.project_groups or 8
    slots = shapes.get("decoder.queries.slot_content") or shapes.get("decoder.queries.table", ())
    shared = layers > 1 and _count(shapes, r"decoder\.class_heads\.(\d+)\..*") == 1
    sizes: dict[str, Any] = {
        "model.embed_dim": width,
        "model.encoder_layers": _count(shapes, r"encoder\.layers\.(\d+)\..*"),
        "model.decoder_layers": layers,
        "model.project_groups": math.gcd(groups, width) if "project.1.weight" in shapes else 0,
        "model.feedforward_dim": _first(shapes, f"decoder.{hidden}", model.feedforward_dim),
        "model.class_pooling": "decoder.class_heads.0.sequence.weight" in shapes,
        "model.dense_classes": "memory_classes.project.weight" in shapes,
        "model.shared_heads": shared,
        "model.decoder_norm": "decoder.norm.weight" in shapes,
        "model.queries": _queries(shapes),
        "model.identity_dim": _first(shapes, "identity.weight", model.identity_dim),
        "model.num_slots": slots[0] if slots else model.num_slots,
        "model.levels": 1 + len(_coarser(shapes)),
        "model.mask_head": "dynamic" if "mask_head.controller.weight" in shapes else "vistr",
    }
    if shared:
        sizes["model.refine_boxes"] = False
    if len(slots) == 3:
        sizes["model.num_frames"] = slots[1]
    if sizes["model.mask_head"] == "dynamic":
        mask_dim = _first(shapes, "mask_features.memory.weight", model.mask_dim)
        # controller outputs: (mask_dim + 2) h + h + h h + h + h + 1
        outputs = _first(shapes, "mask_head.controller.weight", 1)
        b = mask_dim + 5
        sizes["model.mask_dim"] = mask_dim
        sizes["model.mask_hidden"] = (math.isqrt(b * b + 4 * (outputs - 1)) - b) // 2
    for part, attention in (("encoder", "attention"), ("decoder", "cross_attention")):
        layer = f"{part}.layers.0.{attention}"
        weights = shapes.get(f"{layer}.deform.attention_weights.bias", ())
        offsets = shapes.get(f"{layer}.deform.sampling_offsets.bias", ())
        if len(weights) != 1 or len(offsets) != 1:
            sizes[f"model.{part}_attention"] = "dense"
            continue
        in_volume = offsets[0] == 3 * weights[0]
        if not in_volume:
            sizes[f"model.{part}_attention"] = "frames"
        elif getattr(model, f"{part}_attention") != "own-frame":
            sizes[f"model.{part}_attention"] = "deformable"
        levels = 1 + len(_coarser(shapes)) if in_volume else sizes.get("model.num_frames", 0)
        points, rest = divmod(weights[0], model.num_heads)
        finest = points - (levels - 1) * model.coarser_points
        if in_volume and model.coarser_points and finest > 0:
            points, levels = finest, 1
        elif in_volume:
            sizes["model.coarser_points"] = 0
        if levels and not rest and points > 0 and points % levels == 0:
            sizes["model.num_points"] = points // levels
    return sizes


def _queries(shapes: Shapes) -> str:
    """Kind of the decoder's queries."""
    if "decoder.queries.table" in shapes:
        return "free"
    return "seeds" if "decoder.queries.seed_content.weight" in shapes else "slots"


def _coarser(shapes: Shapes) -> list[int]:
    """Channels of the maps that feed the levels after the finest, in this program's model."""
    return [
        shape[1]
        for name, shape in shapes.items()
        if re.fullmatch(r"project_coarser\.\d+\.0\.weight", name) and len(shape) == 4
    ]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number in the names of this form."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return 1 + max((int(each[1]) for each in found if each), default=-1)


def _first(shapes: Shapes, name: str, default: int) -> int:
    """The first size of an entry, or the default where it has none."""
    return next(iter(shapes.get(name, ())), default)
