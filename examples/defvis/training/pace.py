"""How long a run takes: measured on a few steps before it begins, then on its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from defvis.config import Config
from defvis.data.clips import Batch
from defvis.models.device import wait_for
from defvis.training.stages import Stage, joint_steps

# Measured steps, and the seconds after which no further one begins.
_STEPS, _SECONDS = 5, 5.0


@dataclass
class Pace:
    """What is left of a run, and how long it takes.

    Attributes:
        steps: Optimiser steps left of each stage.
        videos: Videos left to validate, each time that one is.
        seconds: Of a step of each stage, as far as they are known.
        seconds_per_video: Of a validation; None until it is known.
    """

    steps: dict[str, int]
    videos: int
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_per_video: float | None = None

    def minutes(self) -> dict[str, float]:
        """Minutes left, of each stage and of the validations, as far as they are known."""
        parts = {
            name: self.seconds[name] * left / 60
            for name, left in self.steps.items()
            if left and name in self.seconds
        }
        if self.seconds_per_video is not None:
            parts["validation"] = self.seconds_per_video * self.videos / 60
        return parts

    def __str__(self) -> str:
        minutes = self.minutes()
        if not minutes:
            return "not known yet"
        unknown = [name for name, left in self.steps.items() if left and name not in self.seconds]
        parts = [f"{name} {in_words(part)}" for name, part in minutes.items()]
        parts += [f"{name} not known yet" for name in unknown]
        return f"about {in_words(sum(minutes.values()))} ({', '.join(parts)})"


def what_is_left(
    config: Config, saved: Mapping[str, Any] | None, train: int, val: int, processes: int
) -> Pace:
    """The steps and videos of a run.

    Args:
        config: All numbers.
        saved: The checkpoint that it goes on from, None at its beginning.
        train: Number of videos.
        val: Number of videos.
        processes: How many train together.
    """
    last = joint_steps(config, train, processes)
    steps = {"backbone": config.backbone_stage.steps, "joint": last}
    if saved is not None:
        if saved["stage"] == "joint":
            steps["backbone"] = 0
        steps[saved["stage"]] -= saved["step"]
    due = 0
    if config.eval_every:
        done = last - steps["joint"]
        due = max(0, (last - 1) // config.eval_every - done // config.eval_every)
    return Pace(steps, due * min(val, config.eval_videos) + val)


def in_words(minutes: float) -> str:
    """Minutes as a person says them."""
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def seconds_per_step(
    stage: Stage, load: Callable[[], Batch], device: torch.device, workers: int
) -> float:
    """Takes a few steps of a stage, all with one batch, and returns the seconds of one.

    Args:
        stage: Takes the steps, so its state and its model change.
        load: Loads the stage's first batch, in this process. The second time shows what loading
            costs when the frames are in the cache, if they fit there.
        device: Where the steps run.
        workers: Processes that load while the steps run; 0 loads between them.
    """
    load()
    begin = time.perf_counter()
    batch = load()
    loading = time.perf_counter() - begin
    batch = batch.to(device)
    taken: list[float] = []
    first = time.perf_counter()
    while len(taken) <= _STEPS and time.perf_counter() - first < _SECONDS:
        begin = time.perf_counter()
        stage.step(batch)
        wait_for(device)
        taken.append(time.perf_counter() - begin)
    # The first one allocates memory, unless there is no other.
    step = statistics.median(taken[1:] or taken)
    return max(step, loading / workers) if workers else step + loading
