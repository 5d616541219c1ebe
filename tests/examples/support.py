"""What the tests of the examples share: programs, changed configs, a tiny model, targets."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from defvis.config import BackboneConfig, ModelConfig
from defvis.config_io import Settings, override
from defvis.data.boxes import boxes_of_masks
from defvis.data.clips import Targets
from defvis.models.attention import Volume
from defvis.models.position_encoding import sine_position_3d
from stdeform import shapes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# A run of a few seconds, for --set.
TINY_RUN = [
    "model.embed_dim=24", "model.num_heads=2", "model.num_slots=4", "model.feedforward_dim=32",
    "model.encoder_layers=1", "model.decoder_layers=2", "model.backbone.embedding_size=8",
    "model.backbone.hidden_sizes=[8, 16]", "model.backbone.depths=[1, 1]",
    "backbone_stage.frames_per_step=2", "batch_size=2", "log_every=1", "data.paste=0",
]  # fmt: skip
T = TypeVar("T", bound=Settings)


def changed(config: T, *assignments: str) -> T:
    """A config with numbers changed as by --set, for example "steps=3"."""
    return functools.reduce(override, assignments, config)


def as_words(settings: Sequence[str]) -> list[str]:
    """Settings for the command line."""
    return [word for setting in settings for word in ("--set", setting)]


def program(name: str) -> Callable[[list[str]], None]:
    """The main function of an example program."""
    main: Callable[[list[str]], None] = importlib.import_module(name).main
    return main


def launch(file: str, *words: str, module: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Starts an example program as a user does, with warnings as errors."""
    paths = [str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-W", "error", *module, str(EXAMPLES / file), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


def tiny_model() -> ModelConfig:
    """A model small enough to run in milliseconds."""
    return ModelConfig(
        backbone=BackboneConfig(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1)),
        num_classes=3, num_frames=4, num_slots=3, embed_dim=24, num_heads=2, num_points=5,
        encoder_layers=1, decoder_layers=2, feedforward_dim=32, mask_dim=8,
    )  # fmt: skip


def volume(
    shape: tuple[int, int, int], channels: int, padding: torch.Tensor | None = None
) -> Volume:
    """Where the cells (T, H, W) of one clip are; `padding` is bool [1, T, H, W]."""
    mask = torch.zeros(1, *shape, dtype=torch.bool) if padding is None else padding
    return Volume(
        shapes=(shape,),
        position=sine_position_3d(mask, channels).flatten(2).transpose(1, 2),
        padding_mask=None if padding is None else padding.flatten(1),
        valid_ratios=shapes.valid_ratios(mask)[:, None],
        frame_mask=~mask.flatten(2).all(-1),
    )


def square_masks(
    visible: list[bool], size: int = 32, left: int = 4, side: int = 12
) -> torch.Tensor:
    """Masks [T, size, size] of a square that moves right, present where `visible` is True."""
    masks = torch.zeros(len(visible), size, size, dtype=torch.bool)
    for frame, seen in enumerate(visible):
        if seen:
            masks[frame, 8 : 8 + side, left + frame : left + frame + side] = True
    return masks


def make_targets(labels: list[int], masks: list[torch.Tensor], frames: int = 4) -> Targets:
    """Targets from labels and masks, as the loader builds them."""
    stacked = torch.stack(masks) if masks else torch.zeros(0, frames, 32, 32, dtype=torch.bool)
    return Targets(
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=boxes_of_masks(stacked),
        masks=stacked,
        valid=stacked.flatten(2).any(-1),
    )
