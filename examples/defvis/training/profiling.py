"""Where the time of a training step goes, and how much memory it takes at most."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from defvis.data.clips import Batch
from defvis.models.device import wait_for
from defvis.training.stages import Stage

if sys.platform != "win32":
    import resource

# Steps before the measured ones: memory is allocated, kernels are chosen.
WARM_UP = 2


@dataclass(frozen=True)
class Profile:
    """Seconds per step of each part, and memory.

    Attributes:
        seconds: By part. "data" is the wait for the next batch, "losses" all of the forward pass
            outside the model's named parts (matching and losses), "backward" the rest of the
            step.
        step: Seconds per step in all.
        peak_megabytes: Most memory held at once: of the device's tensors on CUDA, of the whole
            process elsewhere; NaN on Windows.
    """

    seconds: dict[str, float]
    step: float
    peak_megabytes: float

    def __str__(self) -> str:
        lines = [
            f"{name:16s} {1000 * seconds:9.1f} ms {seconds / self.step:6.1%}"
            for name, seconds in self.seconds.items()
        ]
        lines.append(f"{'step':16s} {1000 * self.step:9.1f} ms")
        lines.append(f"{'peak memory':16s} {self.peak_megabytes:9.0f} MiB")
        return "\n".join(lines)


def profile(
    stage: Stage, model: nn.Module, batches: Iterator[Batch], steps: int, device: torch.device
) -> Profile:
    """Takes some steps of a stage and measures their parts.

    Args:
        stage: Takes the steps, so its state changes.
        model: Its model; every child is a part.
        batches: Of the stage.
        steps: Steps to measure.
        device: Where they run.

    Raises:
        ValueError: If `steps` is below 1, or the stage has too few.
    """
    if not 1 <= steps <= stage.steps - WARM_UP:
        raise ValueError(f"steps must be 1 to {stage.steps - WARM_UP}, got {steps}")
    clock = _Clock(device)
    step = 0.0
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            clock.seconds.clear()
            step = 0.0
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
        with clock.watch(stage, model):
            begin = clock.now()
            batch = next(batches).to(device)
            clock.add("data", clock.now() - begin)
            stage.step(batch)
            step += clock.now() - begin
    parts = {name: seconds / steps for name, seconds in clock.seconds.items()}
    inside = sum(parts.get(name, 0.0) for name, _ in model.named_children())
    parts["losses"] = parts.pop("forward") - inside
    parts["backward"] = step / steps - sum(parts.values())
    parts["optimiser"] = parts.pop("optimiser")
    return Profile(parts, step / steps, _peak_megabytes(device))


class _Clock:
    """Adds up seconds by part."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._begun: dict[str, float] = {}

    def now(self) -> float:
        """Seconds, after the device has finished its work."""
        wait_for(self._device)
        return time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def watch(self, stage: Stage, model: nn.Module) -> Iterator[None]:
        """Measures forward pass, its parts, and optimiser while the context lasts."""
        handles: list[Any] = []
        for name, module in [("forward", stage.losses), *model.named_children()]:
            handles.append(module.register_forward_pre_hook(self._begin(name)))
            handles.append(module.register_forward_hook(self._end(name)))
        handles.append(stage.optimizer.register_step_pre_hook(self._begin("optimiser")))
        handles.append(stage.optimizer.register_step_post_hook(self._end("optimiser")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._begun[name] = self.now()

        return hook

    def _end(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.add(name, self.now() - self._begun[name])

        return hook


def _peak_megabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of bytes, elsewhere of kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
