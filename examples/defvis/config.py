"""Every number of a run in one tree of dataclasses: printable, and saved in every checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneConfig:
    """The per-frame feature extractor, any `transformers` AutoBackbone.

    Attributes:
        name: A `transformers` model name or directory to load weights from. Empty builds a
            randomly initialised ResNet from the sizes below.
        layer_type: "basic" or "bottleneck" residual layers.
        embedding_size: Channels of the stem.
        hidden_sizes: Channels of each stage.
        depths: Residual layers in each stage.
        out_features: Stages handed on, fine to coarse. The last feeds the encoder, the others
            the mask head.
    """

    name: str = ""
    layer_type: str = "basic"
    embedding_size: int = 32
    hidden_sizes: tuple[int, ...] = (48, 96)
    depths: tuple[int, ...] = (1, 2)
    out_features: tuple[str, ...] = ("stage1", "stage2")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network.

    Attributes:
        num_classes: Categories, without a background class (classes are sigmoids).
        num_frames: Frames T of a training clip. No weight depends on it.
        num_slots: Object slots I. The decoder has T * I queries, one per (slot, frame).
        embed_dim: Channels C of the transformer; divisible by `num_heads` and by 6.
        num_heads: Attention heads M.
        num_points: Sampling points K per head in the whole volume.
        encoder_layers: Encoder depth.
        decoder_layers: Decoder depth.
        feedforward_dim: Hidden width of the feed-forward blocks.
        dropout: Dropout rate in attention and feed-forward blocks.
        initial_box: Width and height of the learned first reference box of every slot, as
            fractions of the frame.
        mask_dim: Channels of the mask features.
        mask_hidden: Hidden width of the per-query mask network.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: int = 10
    num_frames: int = 6
    num_slots: int = 10
    embed_dim: int = 96
    num_heads: int = 6
    num_points: int = 12
    encoder_layers: int = 2
    decoder_layers: int = 3
    feedforward_dim: int = 256
    dropout: float = 0.0
    initial_box: tuple[float, ...] = (0.4, 0.6)
    mask_dim: int = 16
    mask_hidden: int = 8


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; the class, L1 and GIoU weights serve matching as well.

    Attributes:
        class_weight: Sigmoid focal loss of the classes.
        l1_weight: Sum of absolute box errors.
        giou_weight: 1 - GIoU.
        mask_weight: Sigmoid focal loss of the mask pixels (mean over pixels).
        dice_weight: Dice loss of the masks.
        dense_weight: Class maps on backbone and encoder cells.
        focal_alpha: Share of the positives in the focal losses.
        focal_gamma: Exponent of the focal losses.
        dense_share: A cell belongs to a class when more than this share of it is covered.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = 20.0
    dice_weight: float = 3.0
    dense_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    dense_share: float = 0.15


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, learning rates and schedule of the joint stage.

    Attributes:
        learning_rate: Rate of everything that has no multiplier.
        backbone_multiplier: Factor for the backbone (paper: 0.1).
        offset_multiplier: Factor for the layers that predict sampling offsets and reference
            boxes (paper: 0.1; 1 learns faster when training is only minutes long).
        weight_decay: On matrices only; biases, norms and embeddings are not decayed.
        clip_norm: Largest L2 norm of the whole gradient.
        warmup_steps: Steps of linear warm-up.
        final_fraction: The cosine ends at this fraction of the rate.
        ema_decay: Decay of the averaged weights used for validation; 0 switches them off.
    """

    learning_rate: float = 1e-3
    backbone_multiplier: float = 0.5
    offset_multiplier: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    warmup_steps: int = 100
    final_fraction: float = 0.01
    ema_decay: float = 0.999


@dataclass(frozen=True)
class BackboneStageConfig:
    """The stage before joint training: the backbone alone learns classes on single frames.

    Attributes:
        steps: Optimiser steps; 0 skips the stage (for a backbone that is already trained).
        frames_per_step: Single frames per step, each from another clip where there are enough.
        learning_rate: Peak rate of AdamW.
        warmup_steps: Steps of linear warm-up.
    """

    steps: int = 1000
    frames_per_step: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50


@dataclass(frozen=True)
class DataConfig:
    """How clips are drawn from videos and changed.

    Attributes:
        short_side: Frames are resized so that their short side has this many pixels; 0 keeps
            their size.
        flip: Probability of a mirrored clip. 0 for digits: a mirrored digit is another shape.
        reverse: Probability of a clip played backwards.
        permute_channels: Probability of exchanged colour channels.
        brightness: Largest relative change of brightness of a clip.
        cache_megabytes: Decoded frames kept in memory, at most this much; 0 keeps none.
        workers: Processes that load clips; 0 loads in the training process.
    """

    short_side: int = 0
    flip: float = 0.0
    reverse: float = 0.5
    permute_channels: float = 0.8
    brightness: float = 0.2
    cache_megabytes: int = 1024
    workers: int = 0


@dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        steps: Optimiser steps of the joint stage.
        batch_size: Clips per step.
        eval_every: Steps between validations on the subset; 0 validates at the end only.
        eval_videos: Videos in that subset. The last validation takes all of them.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        seed: Of weights, order of clips and augmentation.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    backbone_stage: BackboneStageConfig = field(default_factory=BackboneStageConfig)
    data: DataConfig = field(default_factory=DataConfig)
    steps: int = 2200
    batch_size: int = 4
    eval_every: int = 500
    eval_videos: int = 40
    checkpoint_every: int = 250
    log_every: int = 20
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the tree as plain dictionaries, lists, numbers and strings."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Rebuilds a config from `to_dict`; a name that does not exist is a ValueError."""
        return _build(cls, values, path="config")

    def __str__(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


PRESETS: dict[str, Config] = {"small": Config()}


def preset(name: str) -> Config:
    """Returns a named config; an unknown name is a ValueError that lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]


def override(config: Config, assignment: str) -> Config:
    """Returns a config with one number changed.

    Args:
        config: The config to start from.
        assignment: "path=value" with a JSON value, for example "optim.learning_rate=5e-4" or
            "model.initial_box=[0.3, 0.3]".

    Raises:
        ValueError: If the path does not exist, or the value is not JSON of the field's type.
    """
    path, equals, text = assignment.partition("=")
    values = config.to_dict()
    *parents, name = path.split(".")
    branch = values
    for parent in parents:
        branch = branch.get(parent, {}) if isinstance(branch, dict) else {}
    if not equals or not isinstance(branch, dict) or name not in branch:
        raise ValueError(f"a setting must be a field of the config = a value, got {assignment!r}")
    old = branch[name]
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    if isinstance(old, float) and type(new) is int:
        new = float(new)
    if type(new) is not type(old):
        raise ValueError(f"{path} must be a {type(old).__name__}, got {text!r}")
    branch[name] = new
    return Config.from_dict(values)


def _build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{path} has no field {unknown[0]!r}; it has {sorted(hints)}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            value = _build(kind, value, f"{path}.{name}")  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return cls(**arguments)
