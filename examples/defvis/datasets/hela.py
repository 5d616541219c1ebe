"""Cuts a microscope sequence of cells, with a mask per frame, into clips with tracks.

The masks name cells anew in every frame. A cell is followed by overlap: between neighbouring frames
cells are paired one to one so that the overlap (IoU) is largest in all. Tracks made so are not
ground truth: a pair may be wrong, and after a division one daughter keeps the mother's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from defvis.datasets.ytvis_writer import SplitWriter
from defvis.decoding.errors import DataError

# Cells of neighbouring frames that overlap less are two cells.
_MIN_IOU = 0.2
# A smaller piece of a cell, cut off by the border of a clip, is left out.
_MIN_PIXELS = 20
# Share of the columns of tiles that is kept for validation.
_VAL_SHARE = 0.25


@dataclass(frozen=True)
class TileSettings:
    """How the sequence is cut.

    Attributes:
        frames: Frames per clip.
        height: Height of a clip in pixels.
        width: Width of a clip in pixels.
        scale: Every pixel of the sequence becomes this many in each direction.
    """

    frames: int = 10
    height: int = 128
    width: int = 128
    scale: int = 1

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "scale"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def write_tiles(
    root: Path, images: NDArray[np.uint16], labels: NDArray[np.uint16], settings: TileSettings
) -> dict[str, int]:
    """Writes `root/train` and `root/val` from tiles that share no pixel.

    Args:
        root: Folder to create.
        images: Grey values [T, H, W].
        labels: Number of the cell at each pixel, 0 for none, [T, H, W].
        settings: How the sequence is cut.

    Returns:
        Clips per split.

    Raises:
        FileExistsError: If `root` exists.
        DataError: If the sequence is too small for a clip of each split.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists already; remove it or choose another folder")
    if images.shape != labels.shape:
        raise DataError(f"images have shape {images.shape}, their masks {labels.shape}")
    length, height, width = images.shape
    columns = width // settings.width
    val_columns = round(columns * _VAL_SHARE)
    if length < settings.frames or height < settings.height or not 0 < val_columns < columns:
        raise DataError(
            f"{length} frames of {width} x {height} pixels are too few for clips of "
            f"{settings.frames} frames of {settings.width} x {settings.height}"
        )
    grey = stretched(images)
    tracked = follow(labels)
    splits = {"train": range(columns - val_columns), "val": range(columns - val_columns, columns)}
    counts = {}
    for split, own in splits.items():
        writer = SplitWriter(root / split)
        counts[split] = 0
        for tile in _tiles(grey.shape, own, settings):
            block = np.ones((1, settings.scale, settings.scale), dtype=np.uint8)
            pixels = np.kron(grey[tile], block)
            masks = np.kron(_masks(tracked[tile]), block[None]).astype(bool)
            writer.add(
                np.repeat(pixels[..., None], 3, axis=-1), masks, [{"category_id": 1}] * len(masks)
            )
            counts[split] += 1
        writer.close(
            {"description": "HeLa nuclei, tracks followed by overlap", "split": split},
            [{"id": 1, "name": "nucleus", "supercategory": "cell"}],
        )
    return counts


def stretched(images: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Grey values as bytes: the darkest thousandth is black, the brightest white."""
    low, high = np.percentile(images, (0.1, 99.9))
    scaled = (images.astype(np.float32) - low) * (255 / max(1.0, high - low))
    grey: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return grey


def follow(labels: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Names cells alike through all frames.

    Args:
        labels: Number of the cell at each pixel, 0 for none, in any order in each frame, [T, H, W].

    Returns:
        The same with one number per track.
    """
    tracked = np.zeros(labels.shape, dtype=np.int64)
    unused = 1
    for frame, current in enumerate(labels):
        names, cells = np.unique(current, return_inverse=True)
        cells = cells.reshape(current.shape)
        tracks = np.zeros(len(names), dtype=np.int64)
        if frame:
            for cell, track in _pairs(names, cells, tracked[frame - 1]):
                tracks[cell] = track
        fresh = (tracks == 0) & (names != 0)
        tracks[fresh] = unused + np.arange(fresh.sum())
        unused += int(fresh.sum())
        tracked[frame] = tracks[cells]
    return tracked


def _pairs(
    names: NDArray[np.uint16], cells: NDArray[np.int64], before: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Pairs of an index into `names` and a track of the frame before, none of the background."""
    tracks, places = np.unique(before, return_inverse=True)
    shape = (len(names), len(tracks))
    shared = np.bincount(cells.ravel() * shape[1] + places.ravel(), minlength=shape[0] * shape[1])
    shared = shared.reshape(shape)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0) - shared
    iou = shared / union
    iou[names == 0], iou[:, tracks == 0] = 0.0, 0.0
    for cell, column in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
        if iou[cell, column] >= _MIN_IOU:
            yield int(cell), int(tracks[column])


def _tiles(
    shape: Sequence[int], columns: range, settings: TileSettings
) -> Iterator[tuple[slice, slice, slice]]:
    length, height, _ = shape
    for start in range(0, length - settings.frames + 1, settings.frames):
        for top in range(0, height - settings.height + 1, settings.height):
            for column in columns:
                left = column * settings.width
                yield (
                    slice(start, start + settings.frames),
                    slice(top, top + settings.height),
                    slice(left, left + settings.width),
                )


def _masks(tracked: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Masks [G, T, H, W] of the tracks in a clip, without crumbs."""
    masks = np.stack(
        [tracked == track for track in np.unique(tracked) if track]
        or [np.zeros(tracked.shape, dtype=bool)]
    )
    crumbs = masks.sum(axis=(2, 3)) < _MIN_PIXELS
    masks[crumbs] = False
    return masks
