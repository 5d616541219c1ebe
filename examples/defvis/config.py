"""Every number of a run in one tree of dataclasses: printable, and saved in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from defvis.config_io import Range, Settings
from defvis.config_rules import model_rules, run_rules

_POSITIVE, _SHARE, _NOT_NEGATIVE = Range(1, 2**31 - 1), Range(0, 1), Range(0)
_MOST_LAYERS = 1000  # More would take minutes to build, before anything can be compared.
Attention = Literal["deformable", "own-frame", "frames", "dense"]


@dataclass(frozen=True)
class BackboneConfig(Settings):
    """The per-frame feature extractor, any `transformers` AutoBackbone.

    Attributes:
        name: A `transformers` model name or directory to load weights from. Empty builds a
            randomly initialised ResNet from the sizes below.
        layer_type: "basic" or "bottleneck" residual layers.
        embedding_size: Channels of the stem.
        hidden_sizes: Channels of each stage.
        depths: Residual layers in each stage.
        out_features: Stages that are used, fine to coarse. The last ones, as many as
            `ModelConfig.levels`, feed the encoder, the others the mask head.
        frozen_norm: Batch norms keep the statistics and factors of the loaded weights.
        frozen_stages: This many stages from the finest on, and the stem with the first, keep
            their loaded weights; 0 trains everything.
    """

    _path: ClassVar[str] = "model.backbone."
    _ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("embedding_size", "hidden_sizes"), _POSITIVE),
        "depths": Range(1, _MOST_LAYERS),
    }

    name: str = ""
    layer_type: Literal["basic", "bottleneck"] = "basic"
    embedding_size: int = 32
    hidden_sizes: tuple[int, ...] = (48, 96)
    depths: tuple[int, ...] = (1, 2)
    out_features: tuple[str, ...] = ("stage1", "stage2")
    frozen_norm: bool = False
    frozen_stages: int = 0


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Parts and sizes of the network.

    Attributes:
        num_classes: Categories, without a background class.
        class_output: "sigmoid" has one probability per class; "softmax" shares them out among
            the classes and a last one, no object (VisTR).
        class_pooling: The class of a (slot, frame) is read from the slot's mean over all frames
            too, not only from its own query.
        dense_classes: Class maps on backbone and encoder cells, for the backbone stage and
            `LossConfig.dense_weight`.
        num_frames: Frames T of a training clip. Any number of frames can be predicted, but with
            attention "frames" not more than this.
        num_slots: Object slots I. The decoder has T * I queries, one per (slot, frame).
        levels: Stages of the backbone that feed the encoder, each a level of its own. Queries
            "seeds", class maps and masks read the finest. 1 with attention "frames".
        embed_dim: Channels C of the transformer; even, and divisible by `num_heads`.
        project_groups: Groups of the GroupNorm after the projection to C; 0 leaves it out.
        num_heads: Attention heads M.
        num_points: Sampling points K per head in the whole volume, in each level; per frame
            with attention "frames".
        coarser_points: Points per head in each level but the finest; 0: as `num_points`.
        encoder_layers: Encoder depth.
        decoder_layers: Decoder depth.
        encoder_attention: How cells attend to cells. "deformable" samples K points of the volume
            around the cell, "own-frame" K points of the cell's frame, "frames" K points in each
            frame (what the authors of Deformable VisTR released), "dense" takes every cell
            (VisTR).
        decoder_attention: How queries attend to cells; the same choices.
        feedforward_dim: Hidden width of the feed-forward blocks.
        dropout: Dropout rate in attention and feed-forward blocks.
        queries: "slots" composes a query from its slot, time and box, and starts from a learned
            box per slot; "seeds" starts each slot from a cell that shows an object and from
            what is like it in the other frames; "free" learns one for each (slot, frame)
            (VisTR) and predicts its reference point from it.
        initial_box: Width and height of the learned first reference box of every slot, as
            fractions of the frame. For queries "slots" and "seeds".
        identity_dim: Channels of the embedding by which queries "seeds" find a cell's likeness.
        refine_boxes: Every decoder layer refers to the boxes that the one before predicted.
        shared_heads: All decoder layers share one class and one box head.
        decoder_norm: A LayerNorm between decoder layer and heads.
        initialisation: Of the transformer's matrices: as "torch" does, or all "xavier" (VisTR).
        mask_head: "dynamic" (each query writes a small network for its frame) or "vistr"
            (attention maps, FPN, deformable and 3-D convolutions).
        mask_dim: Channels of the mask features of the dynamic head.
        mask_hidden: Hidden width of the dynamic head's per-query network.
        mask_chunk: Slots whose masks the VisTR head computes at a time; 0 takes all at once.
        checkpointing: Saves memory in training by computing the activations of encoder, decoder
            and VisTR mask head again when the gradient needs them.
    """

    _path: ClassVar[str] = "model."
    _ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("num_classes", "num_frames", "num_slots"), _POSITIVE),
        **dict.fromkeys(("num_heads", "num_points"), _POSITIVE),
        **dict.fromkeys(("feedforward_dim", "mask_dim", "mask_hidden"), _POSITIVE),
        **dict.fromkeys(("identity_dim", "levels"), _POSITIVE),
        "embed_dim": Range(6, 2**31 - 1),  # two channels for each sine axis
        "encoder_layers": Range(0, _MOST_LAYERS),
        "decoder_layers": Range(1, _MOST_LAYERS),
        "dropout": Range(0, below=1),
        "initial_box": Range(above=0, below=1),
    }

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: int = 10
    class_output: Literal["sigmoid", "softmax"] = "sigmoid"
    class_pooling: bool = True
    dense_classes: bool = True
    num_frames: int = 6
    num_slots: int = 10
    levels: int = 1
    embed_dim: int = 96
    project_groups: int = 8
    num_heads: int = 6
    num_points: int = 12
    coarser_points: int = 0
    encoder_layers: int = 2
    decoder_layers: int = 3
    encoder_attention: Attention = "deformable"
    decoder_attention: Attention = "deformable"
    feedforward_dim: int = 256
    dropout: float = 0.0
    queries: Literal["slots", "seeds", "free"] = "seeds"
    initial_box: tuple[float, ...] = (0.4, 0.6)
    identity_dim: int = 32
    refine_boxes: bool = True
    shared_heads: bool = False
    decoder_norm: bool = False
    initialisation: Literal["torch", "xavier"] = "torch"
    mask_head: Literal["dynamic", "vistr"] = "dynamic"
    mask_dim: int = 32
    mask_hidden: int = 8
    mask_chunk: int = 0
    checkpointing: bool = False

    @property
    def points_per_level(self) -> tuple[int, ...]:
        """Sampling points K per head of each level, fine to coarse."""
        coarser = self.coarser_points or self.num_points
        return (self.num_points, *(coarser,) * (self.levels - 1))


@dataclass(frozen=True)
class LossConfig(Settings):
    """Weights of the losses; the class, L1 and GIoU weights serve matching as well.

    Attributes:
        class_weight: Class loss: sigmoid focal loss, or cross-entropy where the model has a
            no-object class.
        no_object_weight: Weight of the no-object class in the cross-entropy.
        l1_weight: Sum of absolute box errors.
        giou_weight: 1 - GIoU.
        mask_weight: Sigmoid focal loss of the mask pixels (mean over pixels).
        dice_weight: Dice loss of the masks.
        dense_weight: Class maps on backbone and encoder cells.
        identity_weight: Contrastive loss of the cells' embeddings, where queries are "seeds".
        mask_chunk: Slots whose masks are compared at full size at a time, and once more for the
            gradient, to save memory; 0 takes all at once.
        focal_alpha: Share of the positives in the focal losses.
        focal_gamma: Exponent of the focal losses.
        dense_share: A cell belongs to a class when more than this share of it is covered.
    """

    _path: ClassVar[str] = "loss."
    _ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("class_weight", "no_object_weight", "l1_weight"), _NOT_NEGATIVE),
        **dict.fromkeys(("giou_weight", "mask_weight", "dice_weight"), _NOT_NEGATIVE),
        **dict.fromkeys(("dense_weight", "identity_weight", "focal_gamma"), _NOT_NEGATIVE),
        "focal_alpha": _SHARE,
        "dense_share": Range(0, below=1),
    }

    class_weight: float = 2.0
    no_object_weight: float = 0.1
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = 20.0
    dice_weight: float = 3.0
    dense_weight: float = 1.0
    identity_weight: float = 0.5
    mask_chunk: int = 0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    dense_share: float = 0.15


@dataclass(frozen=True)
class OptimConfig(Settings):
    """AdamW, learning rates and schedule of the joint stage.

    Attributes:
        learning_rate: Rate of everything that has no multiplier.
        backbone_multiplier: Factor for the backbone (paper: 0.1).
        offset_multiplier: Factor for the layers that predict sampling offsets and reference
            boxes (paper: 0.1; 1 learns faster when training is only minutes long).
        weight_decay: AdamW's.
        decay_all: True decays every weight (VisTR); False matrices only, not biases, norms and
            embeddings.
        clip_norm: Largest L2 norm of the whole gradient.
        warmup_steps: Steps of linear warm-up.
        schedule: What follows the warm-up: a "cosine" down to `final_fraction` of the rate, or
            a "step": the rate times `final_fraction` from `drop_at` on.
        drop_at: Where the step is, as a fraction of all steps.
        final_fraction: The rate at the end, as a fraction of the peak.
        ema_decay: Decay of the averaged weights used for validation; 0 switches them off.
    """

    _path: ClassVar[str] = "optim."
    _ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("backbone_multiplier", "offset_multiplier"), _NOT_NEGATIVE),
        **dict.fromkeys(("learning_rate", "weight_decay"), _NOT_NEGATIVE),
        **dict.fromkeys(("drop_at", "final_fraction"), _SHARE),
        "clip_norm": Range(above=0),
        "ema_decay": Range(0, below=1),
    }

    learning_rate: float = 1e-3
    backbone_multiplier: float = 0.5
    offset_multiplier: float = 1.0
    weight_decay: float = 1e-4
    decay_all: bool = False
    clip_norm: float = 1.0
    warmup_steps: int = 100
    schedule: Literal["cosine", "step"] = "cosine"
    drop_at: float = 0.8
    final_fraction: float = 0.01
    ema_decay: float = 0.999


@dataclass(frozen=True)
class BackboneStageConfig(Settings):
    """The stage before joint training: the backbone alone learns classes on single frames.

    Attributes:
        steps: Optimiser steps; 0 skips the stage (for a backbone that is already trained).
        frames_per_step: Single frames per step, each from another clip where there are enough.
        learning_rate: Peak rate of AdamW.
        warmup_steps: Steps of linear warm-up.
    """

    _path: ClassVar[str] = "backbone_stage."
    _ranges: ClassVar[Mapping[str, Range]] = {
        "frames_per_step": _POSITIVE,
        "learning_rate": _NOT_NEGATIVE,
    }

    steps: int = 1000
    frames_per_step: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50


@dataclass(frozen=True)
class DataConfig(Settings):
    """How clips are drawn from videos and changed.

    Attributes:
        short_side: Frames are resized so that their short side has this many pixels; 0 keeps
            their size.
        long_side: Where that makes the long side longer than this many pixels, the frame is
            made smaller; 0 sets no limit.
        short_sides: Training draws the short side of each clip from these instead.
        seen_short_sides: Smallest and largest short side of the training frames where they keep
            their size; a run stores it. Validation and inference scale frames whose short side
            lies outside to the nearest of the two. Empty where it is not known.
        crop: Probability of a clip cut to a random window before it is resized.
        crop_share: Smallest and largest share of each side in that window.
        flip: Probability of a mirrored clip. 0 for digits: a mirrored digit is another shape.
        reverse: Probability of a clip played backwards.
        permute_channels: Probability of exchanged colour channels.
        paste: Probability that up to four objects of other videos, scaled, are laid over a clip.
        recolour: Probability of each of the next four changes, drawn for each on its own.
        brightness: Largest relative change of brightness of a clip.
        contrast: Largest relative change of contrast of a clip.
        saturation: Largest relative change of saturation of a clip.
        hue: Largest turn of the hue of a clip, in degrees.
        cache_megabytes: Decoded frames kept in memory, at most this much; 0 keeps none.
        workers: Processes that load clips; 0 loads in the training process.
    """

    _path: ClassVar[str] = "data."
    _ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(
            ("crop", "flip", "reverse", "permute_channels", "paste", "recolour"), _SHARE
        ),
        **dict.fromkeys(("brightness", "contrast", "saturation"), _SHARE),
        **dict.fromkeys(("short_sides", "seen_short_sides"), _POSITIVE),
        "crop_share": Range(above=0, most=1),
        "hue": Range(0, 180),
    }

    short_side: int = 0
    long_side: int = 0
    short_sides: tuple[int, ...] = ()
    seen_short_sides: tuple[int, ...] = ()
    crop: float = 0.0
    crop_share: tuple[float, ...] = (0.6, 1.0)
    flip: float = 0.0
    reverse: float = 0.5
    permute_channels: float = 0.8
    paste: float = 0.5
    recolour: float = 1.0
    brightness: float = 0.2
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cache_megabytes: int = 1024
    workers: int = 0


@dataclass(frozen=True)
class Config(Settings):
    """A whole run.

    Attributes:
        weights: What to start from: the folder or checkpoint of a run, or a state dict of a ResNet,
            VisTR or Deformable DETR. Entries that fit are loaded. Empty starts from the backbone's
            own weights.
        epochs: Passes of the joint stage over the training videos, one clip of each; 0 counts
            `steps` instead.
        steps: Optimiser steps of the joint stage.
        batch_size: Clips per step in each process.
        accumulation: Parts that the batch is computed in, one after the other, to save memory.
        precision: "fp32", or the dtype of autocast.
        eval_every: Steps between validations on the subset; 0 validates at the end only.
        eval_videos: Videos in that subset. The last validation takes all of them.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        seed: Of weights, order of clips and augmentation.
    """

    _ranges: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("steps", "batch_size", "accumulation"), _POSITIVE),
        **dict.fromkeys(("checkpoint_every", "log_every", "eval_videos"), _POSITIVE),
        "seed": Range(0, 2**62),
    }

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    backbone_stage: BackboneStageConfig = field(default_factory=BackboneStageConfig)
    data: DataConfig = field(default_factory=DataConfig)
    weights: str = ""
    epochs: int = 0
    steps: int = 4000
    batch_size: int = 4
    accumulation: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    eval_every: int = 500
    eval_videos: int = 40
    checkpoint_every: int = 250
    log_every: int = 20
    seed: int = 0

    def check(self) -> None:
        """Checks what several fields must agree on.

        Raises:
            ValueError: With the names of the fields.
        """
        for agrees, rule in (*model_rules(self.model), *run_rules(self)):
            if not agrees:
                raise ValueError(rule)
