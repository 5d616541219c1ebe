"""Instance masks as COCO run lengths: reads every form of YouTube-VIS files, writes one."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


class RLE(TypedDict):
    """Compressed run lengths of a mask, column by column, as pycocotools takes them."""

    size: list[int]
    counts: bytes


def to_rle(segmentation: Any, height: int, width: int) -> RLE:
    """Brings a segmentation of one frame into compressed run lengths.

    Args:
        segmentation: {"size": [h, w], "counts": str or bytes or list of ints}, or a list of
            polygons, each a flat list x0, y0, x1, y1, ... of at least three corners in pixels.
        height: Frame height the mask must have.
        width: Frame width the mask must have.

    Raises:
        ValueError: If the segmentation has another form or size.
    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("segmentation must be RLE with size and counts, polygons, or null")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"segmentation must have size [{height}, {width}], got {size!r}")
    if isinstance(counts, list):
        if any(type(run) is not int for run in counts):
            raise ValueError("RLE counts must be integers")
        # Before the check of the sum: it must not overflow.
        if any(not 0 <= run <= height * width for run in counts):
            raise ValueError(f"RLE counts must be 0 to {height * width}")
        _check_runs(np.array(counts, dtype=np.int64), height, width)
        rle: RLE = coco_mask.frPyObjects(segmentation, height, width)
        return rle
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"RLE counts must be a string or a list, got {type(counts).__name__}")
    encoded = counts.encode("ascii") if isinstance(counts, str) else counts
    _check_runs(_decode_counts(encoded), height, width)
    return {"size": [height, width], "counts": encoded}


def decode(rle: RLE) -> NDArray[np.bool_]:
    """Decodes to bool [H, W]."""
    runs = _decode_counts(rle["counts"])
    ink = np.arange(len(runs)) % 2 == 1  # The first run counts pixels outside the mask.
    height, width = rle["size"]
    return np.repeat(ink, runs).reshape(width, height).T


def encode(mask: NDArray[np.bool_]) -> RLE:
    """Encodes bool [H, W]."""
    rle: RLE = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle


def area(rle: RLE) -> int:
    """Number of mask pixels."""
    return int(coco_mask.area(rle))


def intersection(a: RLE, b: RLE) -> int:
    """Number of pixels that two masks of one size share."""
    return int(coco_mask.area(coco_mask.merge([a, b], intersect=True)))


def to_json(rle: RLE) -> dict[str, Any]:
    """The form that JSON can hold: counts as text."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _from_polygons(polygons: list[Any], height: int, width: int) -> RLE:
    if not polygons:
        raise ValueError("a polygon segmentation must hold at least one polygon")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon must be a flat list of at least three x, y pairs")
        if any(type(number) not in (int, float) for number in polygon):
            raise ValueError("a polygon must hold numbers")
        # pycocotools draws every pixel of the outline, however far outside.
        for name, numbers, size in (("x", polygon[::2], width), ("y", polygon[1::2], height)):
            if any(not -size <= number <= 2 * size for number in numbers):
                raise ValueError(f"{name} of a polygon must be {-size} to {2 * size}")
    rle: RLE = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return rle


def _check_runs(runs: NDArray[np.int64], height: int, width: int) -> None:
    if (runs < 0).any():
        raise ValueError("RLE counts must be at least 0")
    if runs.sum() != height * width:
        raise ValueError(f"RLE counts must add up to {height * width} pixels, got {runs.sum()}")


def _decode_counts(encoded: bytes) -> NDArray[np.int64]:
    """Unpacks COCO's text form of run lengths.

    Each run is a signed number of 5-bit digits, lowest first, one character (digit + 48, + 32 if
    more follow) each; from the fourth run on it is the difference to the run two before.

    pycocotools trusts the runs it is given to fit the size, so they are checked here first.
    """
    if not encoded:
        raise ValueError("RLE counts are empty")
    digits = np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) - 48
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("RLE counts hold a character outside '0' to 'o'")
    ends = np.flatnonzero(digits < 32)
    if not len(ends) or ends[-1] != len(digits) - 1:
        raise ValueError("RLE counts end in the middle of a run")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    # pycocotools shifts digits as 32-bit integers. Sums of shorter runs do not overflow either.
    if lengths.max() > 6:
        raise ValueError("RLE counts hold a run of more than 30 bits")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * place), starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
