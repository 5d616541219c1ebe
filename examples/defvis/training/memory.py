"""Estimates the memory of a training step of a config without computing it.

    cd examples && python -m defvis.training.memory --preset paper --set model.num_frames=18

The step runs on fake tensors, which have shapes but no values, while every storage that it
allocates is counted until it is freed. So the figure is the peak of all live tensors:
the need of an allocator without fragmentation.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from defvis.arguments import whole_number
from defvis.config import Config
from defvis.config_io import override
from defvis.data.clips import Batch, Targets
from defvis.models.model import DefVIS
from defvis.models.precision import autocast
from defvis.presets import PRESETS, preset
from defvis.programs import one_line_errors
from defvis.training.losses import compute_losses
from defvis.training.matcher import Match, matched_slots


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step.

    Attributes:
        weights: Parameters and buffers.
        optimiser: AdamW's two averages of the trained parameters.
        gradients: Of the trained parameters.
        step: Peak of input, activations and gradients.
    """

    weights: int
    optimiser: int
    gradients: int
    step: int

    @property
    def total(self) -> int:
        """The peak of a step after the first."""
        return self.weights + self.optimiser + self.step

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "AdamW": self.optimiser,
            "activations and gradients at the peak": self.step,
            "total": self.total,
        }
        return "\n".join(f"{size / 2**30:7.2f} GiB  {name}" for name, size in parts.items())


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all tensor storages created inside it while they live.

    Attributes:
        bytes: Alive now.
        peak: The most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operator and counts what is new among its results."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size


def training_memory(
    config: Config, frames: int, height: int, width: int, instances: int
) -> StepMemory:
    """Estimates a training step at the config's batch size, precision and checkpointing.

    Args:
        config: The run.
        frames: Frames T of each clip.
        height: Of the frames, in pixels.
        width: Of the frames, in pixels.
        instances: Visible objects in each clip; the mask head runs for their slots.
    """
    with torch.device("meta"):
        model = DefVIS(config.model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        live = LiveStorages()
        with live:
            _step(model, config, frames, height, width, instances)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    tensors = [*model.parameters(), *model.buffers()]
    return StepMemory(
        weights=sum(x.numel() * x.element_size() for x in tensors),
        optimiser=2 * trained,
        gradients=trained,
        step=live.peak,
    )


def _step(
    model: DefVIS, config: Config, frames: int, height: int, width: int, instances: int
) -> None:
    """Forward and backward pass on a batch of zeros, instance g matched to slot g."""
    clips = config.batch_size // config.accumulation
    targets = Targets(
        labels=torch.zeros(instances, dtype=torch.int64),
        boxes=torch.zeros(instances, frames, 4),
        masks=torch.zeros(instances, frames, height, width, dtype=torch.bool),
        valid=torch.ones(instances, frames, dtype=torch.bool),
    )
    batch = Batch(torch.zeros(clips, frames, 3, height, width), None, [targets] * clips)
    matches = [Match(torch.arange(instances), torch.arange(instances))] * clips
    with autocast(batch.frames.device, config.precision):
        outputs = model(batch.frames, batch.padding_mask)
        masks = model.predict_masks(outputs, *matched_slots(matches))
    layers = len(outputs.boxes)
    losses = compute_losses(outputs, masks, [matches] * layers, batch, config.loss)
    losses["total"].backward()


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the estimate for a preset, or what `--set` makes of it."""
    parser = argparse.ArgumentParser(description=training_memory.__doc__)
    parser.add_argument("--preset", default="paper", choices=sorted(PRESETS))
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="as for train_defvis"
    )
    parser.add_argument("--height", type=whole_number(1), default=300)
    parser.add_argument("--width", type=whole_number(1), default=533)
    parser.add_argument("--instances", type=whole_number(1), default=10)
    args = parser.parse_args(argv)
    config = preset(args.preset)
    try:
        for setting in args.set:
            config = override(config, setting)
        config.check()
    except ValueError as error:
        parser.error(str(error))
    if args.instances > config.model.num_slots:
        parser.error(
            f"--instances must be at most the {config.model.num_slots} slots, got {args.instances}"
        )
    clip = config.model.num_frames, args.height, args.width, args.instances
    with one_line_errors("memory"):
        print(training_memory(config, *clip))


if __name__ == "__main__":
    main()
