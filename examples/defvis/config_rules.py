"""What several fields of a config must agree on: whether they do, and the rule in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defvis.config import BackboneConfig, Config, ModelConfig


def model_rules(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    """Whether the fields of a model agree, and in what."""
    width, heads, groups = model.embed_dim, model.num_heads, model.project_groups
    yield width % 2 == 0, f"model.embed_dim must be even, got {width}"
    yield width % heads == 0, f"model.embed_dim, {width}, must be divisible by num_heads, {heads}"
    yield (
        not groups or width % groups == 0,
        f"model.embed_dim, {width}, must be divisible by project_groups, {groups}",
    )
    box = model.initial_box
    yield len(box) == 2, f"model.initial_box must be a width and a height, got {list(box)}"
    yield (
        model.mask_head != "dynamic" or model.mask_dim % 4 == 0,
        f"model.mask_dim must be divisible by 4, got {model.mask_dim}",
    )
    yield (
        model.queries != "seeds" or model.dense_classes,
        'model.queries "seeds" needs model.dense_classes',
    )
    used = model.backbone.out_features
    yield bool(used), "model.backbone.out_features must name at least one stage"
    yield (
        model.levels <= len(used),
        f"model.levels must be at most the {len(used)} stages of model.backbone.out_features, "
        f"got {model.levels}",
    )
    yield (
        model.mask_head != "vistr" or model.levels < len(used),
        'model.mask_head "vistr" needs a stage of model.backbone.out_features besides those that '
        f"feed the encoder, got {len(used)} for model.levels = {model.levels}",
    )
    yield (
        model.levels == 1 or model.encoder_layers > 0,
        f"model.levels must be 1 without encoder layers, got {model.levels}",
    )
    yield (
        model.levels == 1 or "frames" not in (model.encoder_attention, model.decoder_attention),
        f'model.levels must be 1 with attention "frames", got {model.levels}',
    )
    yield (
        model.levels > 1 or not model.coarser_points,
        f"model.coarser_points must be 0 with model.levels = 1, got {model.coarser_points}",
    )
    if not model.backbone.name:
        yield from _resnet_rules(model.backbone)


def _resnet_rules(backbone: BackboneConfig) -> Iterator[tuple[bool, str]]:
    """The same of the sizes of a ResNet."""
    sizes, depths, used = backbone.hidden_sizes, backbone.depths, backbone.out_features
    yield (
        len(sizes) == len(depths) > 0,
        "model.backbone.hidden_sizes and depths must have one entry for each stage, "
        f"got {list(sizes)} and {list(depths)}",
    )
    stages = ["stem", *(f"stage{number}" for number in range(1, len(sizes) + 1))]
    yield (
        list(used) == [stage for stage in stages if stage in used],
        f"model.backbone.out_features must be some of {stages} in this order, got {list(used)}",
    )
    yield (
        backbone.layer_type != "bottleneck" or min(sizes) >= 4,
        f"model.backbone.hidden_sizes of bottlenecks must be at least 4, got {list(sizes)}",
    )
    yield (
        backbone.frozen_stages <= len(sizes),
        f"model.backbone.frozen_stages must be at most the {len(sizes)} stages, "
        f"got {backbone.frozen_stages}",
    )


def run_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same of a run."""
    share = config.data.crop_share
    yield (
        len(share) == 2 and share[0] <= share[1],
        f"data.crop_share must be a smallest and a largest share, got {list(share)}",
    )
    clips = {"batch_size": config.batch_size}
    if config.backbone_stage.steps:
        clips["backbone_stage.frames_per_step"] = config.backbone_stage.frames_per_step
        yield config.model.dense_classes, "the backbone stage needs model.dense_classes, or 0 steps"
    for name, count in clips.items():
        yield (
            config.accumulation <= count,
            f"accumulation must be at most {name}, {count}, got {config.accumulation}",
        )
