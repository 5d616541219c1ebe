"""Compares an exported model with PyTorch on clips of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defvis.config import DataConfig
from defvis.data.clips import Clip, collate, make_clip
from defvis.data.dataset import Frames
from defvis.data.resize_crop import Size, network_size, scale_frames
from defvis.export.network import OUTPUTS
from defvis.models.model import DefVIS

Predict = Callable[[Tensor, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on a batch of clips.

    Attributes:
        sizes: B, T, H, W.
        padded: Whether some of it was padding.
        largest: For each output, the largest absolute difference in real frames, divided by the
            largest absolute value of PyTorch's there if that is above 1. Frames of nothing but
            padding do not count: a norm of constant features makes rounding large.
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
    exported: Predict,
    model: DefVIS,
    source: Frames,
    config: DataConfig,
    any_length: bool = True,
    any_size: bool = True,
) -> Iterator[Difference]:
    """Compares on frames of a source: as they are, fewer and smaller, and both in one batch.

    Args:
        exported: Frames and padding mask to the outputs of `DefVIS.predict`.
        model: The original.
        source: Frames.
        config: For their size.
        any_length: False if `exported` takes clips of the model's `num_frames` only.
        any_size: False if it takes frames of one height and width only.
    """
    length = model.config.num_frames
    size = network_size(source.height, source.width, config)
    smaller = (size[0] * 3 // 4 + 1, size[1] * 2 // 3 + 1) if any_size else size
    fewer = max(1, length // 2) if any_length else length
    for frames, padding in _batches(source, (length, size), (fewer, smaller)):
        expected = model.predict(frames, padding if padding.any() else None)
        found = exported(frames, padding)
        real = ~padding.flatten(2).all(-1)  # [B, T]
        largest = []
        for pair in zip(found, expected, strict=True):  # [B, I, T, ...]
            a, b = (output.transpose(1, 2)[real] for output in pair)
            largest.append(float((a - b).abs().max() / b.abs().max().clamp(min=1)))
        sizes = (*frames.shape[:2], *frames.shape[3:])
        yield Difference(sizes, bool(padding.any()), tuple(largest))


def _batches(
    source: Frames, whole: tuple[int, Size], less: tuple[int, Size]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Frames and padding masks of a whole clip, of a lesser one, and of both together."""
    clips = [_clip(source, *sizes) for sizes in (whole, less)]
    for batch in (clips[:1], clips[1:], clips):
        collated = collate(batch)
        padding = collated.padding_mask
        nothing = torch.zeros_like(collated.frames[:, :, 0], dtype=torch.bool)
        yield collated.frames, nothing if padding is None else padding


def _clip(source: Frames, length: int, size: Size) -> Clip:
    """The first frames of a source, from its start again where it is too short."""
    pixels = np.stack([source.frame(index % source.length) for index in range(length)])
    masks = np.zeros((0, length, *size), dtype=bool)
    return make_clip(scale_frames(pixels, size), np.zeros(0, dtype=np.int64), masks)
