"""Compares an exported model with PyTorch on clips of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defvis.config import DataConfig
from defvis.data.clips import normalise
from defvis.data.resize_crop import network_size, scale_frames
from defvis.data.ytvis import Frames
from defvis.export.network import OUTPUTS
from defvis.models.model import DefVIS

Predict = Callable[[Tensor, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on a batch of clips.

    Attributes:
        sizes: B, T, H, W.
        padded: Whether some of it was padding.
        largest: For each output, the largest absolute difference, divided by the largest absolute
            value of PyTorch's if that is above 1.
    """

    sizes: tuple[int, ...]
    padded: bool
    largest: tuple[float, ...]

    def __str__(self) -> str:
        figures = (f"{n} {x:.1e}" for n, x in zip(OUTPUTS, self.largest, strict=True))
        padded = " with padding" if self.padded else ""
        return f"{' x '.join(map(str, self.sizes))}{padded}: {', '.join(figures)}"


@torch.no_grad()
def compare(
    exported: Predict, model: DefVIS, source: Frames, config: DataConfig, any_length: bool
) -> Iterator[Difference]:
    """Compares on frames of a source: as they are, smaller and fewer, two clips with padding.

    Args:
        exported: Frames and padding mask to the outputs of `DefVIS.predict`.
        model: The original.
        source: Frames.
        config: For their size.
        any_length: False if `exported` takes clips of the model's `num_frames` only.
    """
    for frames, padding in _batches(model.config.num_frames, source, config, any_length):
        expected = model.predict(frames, padding)
        found = exported(frames, padding)
        largest = tuple(
            float((a - b).abs().max() / b.abs().max().clamp(min=1))
            for a, b in zip(found, expected, strict=True)
        )
        sizes = (*frames.shape[:2], *frames.shape[3:])
        yield Difference(sizes, bool(padding.any()), largest)


def _batches(
    length: int, source: Frames, config: DataConfig, any_length: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    height, width = network_size(source.height, source.width, config)

    def clip(count: int, size: tuple[int, int]) -> Tensor:  # [T, 3, H, W]
        """The source's frames, from the start again where it is too short."""
        pixels = [source.frame(index % source.length) for index in range(count)]
        return normalise(scale_frames(np.stack(pixels), size))

    whole = clip(length, (height, width))[None]
    nothing = torch.zeros(1, length, height, width, dtype=torch.bool)
    yield whole, nothing
    fewer = max(1, length // 2) if any_length else length
    smaller = clip(fewer, (height * 3 // 4 + 1, width * 2 // 3 + 1))
    yield smaller[None], torch.zeros_like(smaller[None, :, 0], dtype=torch.bool)
    padded, padding = whole.repeat(2, 1, 1, 1, 1), nothing.repeat(2, 1, 1, 1)
    padding[1, fewer:] = True
    padding[1, :, height * 2 // 3 + 1 :] = True
    padding[1, :, :, width * 3 // 4 + 1 :] = True
    padded[padding[:, :, None].expand_as(padded)] = 0
    yield padded, padding
