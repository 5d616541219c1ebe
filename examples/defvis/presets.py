"""Named configs: the small default, and the models of the papers."""

from __future__ import annotations

from dataclasses import replace

from defvis.config import (
    BackboneConfig,
    BackboneStageConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
)

_RESNET50 = BackboneConfig(
    layer_type="bottleneck",
    embedding_size=64,
    hidden_sizes=(256, 512, 1024, 2048),
    depths=(3, 4, 6, 3),
    out_features=("stage1", "stage2", "stage3", "stage4"),
    frozen_norm=True,
    frozen_stages=1,
)

# Deformable VisTR (Yarram et al., ICASSP 2022), section 3 and 4.1; where it is silent, VisTR
# (Wang et al., CVPR 2021), on which it builds.
_PAPER = Config(
    model=ModelConfig(
        backbone=_RESNET50,
        num_classes=40,
        class_output="softmax",
        class_pooling=False,
        dense_classes=False,
        num_frames=36,
        num_slots=10,
        embed_dim=384,
        project_groups=0,
        num_heads=8,
        num_points=32,
        encoder_layers=6,
        decoder_layers=6,
        feedforward_dim=2048,
        dropout=0.1,
        queries="free",
        refine_boxes=False,
        shared_heads=True,
        decoder_norm=True,
        initialisation="xavier",
        mask_head="vistr",
        mask_chunk=1,
        checkpointing=True,
    ),
    loss=LossConfig(
        class_weight=1.0,
        no_object_weight=0.1,
        l1_weight=5.0,
        giou_weight=2.0,
        mask_weight=1.0,
        dice_weight=1.0,
        dense_weight=0.0,
        mask_chunk=1,
    ),
    optim=OptimConfig(
        learning_rate=1e-4,
        backbone_multiplier=0.1,
        offset_multiplier=0.1,
        weight_decay=1e-4,
        decay_all=True,
        clip_norm=0.1,
        warmup_steps=0,
        schedule="step",
        drop_at=0.8,
        final_fraction=0.1,
        ema_decay=0.0,
    ),
    backbone_stage=BackboneStageConfig(steps=0),
    data=DataConfig(
        short_side=300,
        long_side=540,
        # VisTR's ten scales are all cut to one by the limit on the long side. These do vary, and
        # none costs more than the size that is validated.
        short_sides=(240, 255, 270, 285, 300),
        crop=1.0,
        crop_share=(0.5, 1.0),
        flip=0.5,
        reverse=0.0,
        permute_channels=0.5,
        paste=0.0,
        recolour=0.5,
        brightness=0.125,
        contrast=0.5,
        saturation=0.5,
        hue=18.0,
        cache_megabytes=0,
        workers=4,
    ),
    epochs=50,
    batch_size=1,
    eval_every=5000,
    checkpoint_every=1000,
    log_every=50,
)


def _with_model(config: Config, **changes: object) -> Config:
    return replace(config, model=replace(config.model, **changes))  # type: ignore[arg-type]


PRESETS: dict[str, Config] = {
    # Random weights to a useful model in minutes on two CPU cores.
    "small": Config(),
    # The same with a coarser level in the encoder, and as many points in all.
    "multiscale": _with_model(
        Config(),
        backbone=BackboneConfig(
            hidden_sizes=(48, 96, 128),
            depths=(1, 2, 1),
            out_features=("stage1", "stage2", "stage3"),
        ),
        levels=2,
        num_points=6,
    ),
    # The paper's headline model; K = 16 is the other row of its Table 3.
    "paper": _PAPER,
    "paper-k16": _with_model(_PAPER, num_points=16),
    # Dense attention everywhere: the baseline of the paper's Tables 1 and 2.
    "vistr": _with_model(_PAPER, encoder_attention="dense", decoder_attention="dense"),
    # What the paper's authors released: 2-D points in each frame in the encoder, a dense decoder.
    "frames-as-levels": _with_model(
        _PAPER, encoder_attention="frames", decoder_attention="dense", num_points=6
    ),
    # The widths and heads of Deformable DETR, whose COCO weights then fit (see `pretrained`).
    "paper-c256": _with_model(
        _PAPER,
        embed_dim=256,
        feedforward_dim=1024,
        project_groups=32,
        shared_heads=False,
        decoder_norm=False,
        refine_boxes=True,
    ),
}


def preset(name: str) -> Config:
    """Returns a named config; an unknown name is a ValueError that lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]
