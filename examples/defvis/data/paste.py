"""Objects of another clip laid over a clip.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
CVPR 2021; here an object is taken with its motion, through all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Videos that objects are taken from at most, objects of each, and by how much these are scaled.
MOST_VIDEOS, MOST_OBJECTS, SCALES = 2, 2, (0.7, 1.4)


@dataclass(frozen=True)
class Layers:
    """The pixels of a clip and its objects.

    Attributes:
        pixels: RGB [T, H, W, 3].
        labels: [G].
        masks: [G, T, H, W].
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def paste(clip: Layers, other: Layers, places: Sequence[tuple[float, float]]) -> Layers:
    """Lays objects of another clip over a clip and cuts what they hide out of its masks.

    Args:
        clip: What is below. It may be longer or shorter than `other`, and of another size.
        other: The objects; one without a pixel is passed over.
        places: For each of them where its middle is put, (y, x) as shares of height and width:
            that of the mask in the middle one of the frames in which it is present.
    """
    pixels, masks, labels = clip.pixels.copy(), list(clip.masks.copy()), list(clip.labels)
    frames, height, width = pixels.shape[:3]
    frames = min(frames, len(other.pixels))
    for label, whole, (y, x) in zip(other.labels, other.masks, places, strict=True):
        mask = whole[:frames]
        present = np.flatnonzero(mask.any(axis=(1, 2)))
        if not len(present):
            continue
        middle = np.argwhere(mask[present[len(present) // 2]]).mean(axis=0)
        down, right = round(y * height - middle[0]), round(x * width - middle[1])
        rows, source_rows = _overlap(height, mask.shape[1], down)
        columns, source_columns = _overlap(width, mask.shape[2], right)
        moved = np.zeros((len(clip.pixels), height, width), dtype=bool)
        moved[:frames, rows, columns] = mask[:, source_rows, source_columns]
        below = pixels[:frames, rows, columns]
        above = other.pixels[:frames, source_rows, source_columns]
        below[moved[:frames, rows, columns]] = above[mask[:, source_rows, source_columns]]
        for hidden in masks:
            hidden &= ~moved
        masks.append(moved)
        labels.append(label)
    stacked = np.array(masks, dtype=bool).reshape(len(masks), *clip.pixels.shape[:3])
    return Layers(pixels, np.array(labels, dtype=np.int64), stacked)


def _overlap(size: int, source: int, shift: int) -> tuple[slice, slice]:
    """Where `source` pixels, moved by `shift`, meet `size` pixels: there, and in the source."""
    first, last = max(0, shift), max(0, min(size, source + shift))
    first = min(first, last)
    return slice(first, last), slice(first - shift, last - shift)
