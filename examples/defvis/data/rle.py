"""Instance masks as COCO run lengths: reads every form of YouTube-VIS files, writes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from defvis.data.polygons import without_slivers
from defvis.data.values import shown


class RLE(TypedDict):
    """Compressed run lengths of a mask, column by column, as pycocotools takes them."""

    size: list[int]
    counts: bytes


def to_rle(segmentation: Any, height: int, width: int) -> RLE | None:
    """Brings a segmentation of one frame into compressed run lengths.

    Args:
        segmentation: {"size": [h, w], "counts": str or bytes or list of whole numbers}, or a list
            of polygons, each a flat list x0, y0, x1, y1, ... in pixels. Polygons of fewer than
            three corners are dropped.
        height: Frame height the mask must have.
        width: Frame width the mask must have.

    Returns:
        None if the object is absent: null, [], {}, empty counts, a mask without a pixel.

    Raises:
        ValueError: If the segmentation has another form or size.
    """
    rle = _compressed(segmentation, height, width)
    if rle is None:
        return None
    return rle if _ink([rle["counts"]], height * width)[0] else None


def to_rles(
    segmentations: Sequence[Any], height: int, width: int, place: str, first: int = 0
) -> tuple[dict[int, RLE], dict[int, int]]:
    """Does what `to_rle` does for all frames of an object, in a fraction of the time.

    Args:
        segmentations: One for each frame.
        height: Frame height the masks must have.
        width: Frame width the masks must have.
        place: Where they stand, for the message.
        first: Index of the first of the frames.

    Returns:
        The masks of the frames in which the object is present, by the frame's index; and their
        numbers of pixels.

    Raises:
        ValueError: If a segmentation has another form or size; the message names the frame.
    """
    masks: dict[int, RLE] = {}
    try:
        for frame, segmentation in enumerate(segmentations, start=first):
            rle = _compressed(segmentation, height, width)
            if rle is not None:
                masks[frame] = rle
    except ValueError as error:
        raise ValueError(f"{place}, frame {frame}: {error}") from error
    areas = _areas(masks, height * width, place)
    return {frame: masks[frame] for frame in areas}, areas


def decode(rle: RLE) -> NDArray[np.bool_]:
    """Decodes to bool [H, W]."""
    mask: NDArray[np.bool_] = decode_all([rle])[0]
    return mask


def decode_all(rles: Sequence[RLE]) -> NDArray[np.bool_]:
    """Decodes masks of one size, one at least, to bool [N, H, W]; faster than one by one.

    pycocotools has the same, but warns of itself under NumPy 2.
    """
    runs, _ = _decode_counts([rle["counts"] for rle in rles])
    height, width = rles[0]["size"]
    inside = np.tile([False, True], len(runs))
    columns: NDArray[np.bool_] = np.repeat(inside, runs.ravel()).reshape(-1, width, height)
    return columns.swapaxes(1, 2)


def encode(mask: NDArray[np.bool_]) -> RLE:
    """Encodes bool [H, W]."""
    rle: RLE = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle


def area(rle: RLE) -> int:
    """Number of mask pixels."""
    return int(coco_mask.area(rle))


def box(rle: RLE) -> tuple[float, ...]:
    """Left, top, width and height of the smallest box around the mask, in pixels."""
    return tuple(coco_mask.toBbox(rle).tolist())


def intersection(a: RLE, b: RLE) -> int:
    """Number of pixels that two masks of one size share."""
    return int(coco_mask.area(coco_mask.merge([a, b], intersect=True)))


def to_json(rle: RLE) -> dict[str, Any]:
    """The form that JSON can hold: counts as text."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _compressed(segmentation: Any, height: int, width: int) -> RLE | None:
    """As `to_rle`, but compressed counts are not looked into."""
    if segmentation is None or segmentation == [] or segmentation == {}:
        return None
    if isinstance(segmentation, list):
        polygons = without_slivers(segmentation, height, width)
        if not polygons:
            return None
        rle: RLE = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        return rle
    if not isinstance(segmentation, dict) or not (
        "size" in segmentation and "counts" in segmentation
    ):
        raise ValueError(
            "segmentation must be RLE with size and counts, polygons, or null, got "
            f"{shown(segmentation)}"
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        swapped = "; width and height are swapped" if size == [width, height] else ""
        raise ValueError(
            f"segmentation must have size [{height}, {width}], got {shown(size)}{swapped}"
        )
    if counts is None or counts == "" or counts == [] or counts == b"":
        return None
    if isinstance(counts, list):
        return _from_runs(counts, height, width)
    if isinstance(counts, str):
        if counts.startswith(("b'", 'b"')):
            raise ValueError(
                f"RLE counts are the text of Python bytes, {shown(counts)}: write "
                "counts.decode('ascii') into the file, not str(counts)"
            )
        if not counts.isascii():
            raise ValueError("RLE counts hold a character outside '0' to 'o'")
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise ValueError(f"RLE counts must be a string or a list, got {type(counts).__name__}")
    return {"size": [height, width], "counts": counts}


def _from_runs(counts: list[Any], height: int, width: int) -> RLE:
    for run in counts:
        if type(run) is not int and not (type(run) is float and run.is_integer()):
            raise ValueError(f"RLE counts must be integers, got {shown(run)}")
        # Before the check of the sum: it must not overflow.
        if not 0 <= run <= height * width:
            raise ValueError(f"RLE counts must be 0 to {height * width}, got {shown(run)}")
    runs = [int(run) for run in counts]
    if sum(runs) != height * width:
        raise ValueError(f"RLE counts must add up to {height * width} pixels, got {sum(runs)}")
    rle: RLE = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return rle


def _areas(masks: dict[int, RLE], pixels: int, place: str) -> dict[int, int]:
    """Pixels of the masks that have any, by their frames; the message of an error names one."""
    counts = [rle["counts"] for rle in masks.values()]
    try:
        inks = _ink(counts, pixels)
    except ValueError:
        for frame, one in zip(masks, counts, strict=True):
            try:
                _ink([one], pixels)
            except ValueError as error:
                raise ValueError(f"{place}, frame {frame}: {error}") from error
        raise
    return {frame: ink for frame, ink in zip(masks, inks, strict=True) if ink}


def _ink(encoded: Sequence[bytes], pixels: int) -> list[int]:
    """Pixels of each of several masks.

    pycocotools trusts the runs it is given to fit the size, so they are checked here first.

    Raises:
        ValueError: If the runs of a mask are not those of a frame of `pixels`.
    """
    if not encoded:
        return []
    runs, firsts = _decode_counts(encoded)
    if (runs < 0).any():
        raise ValueError("RLE counts must be at least 0")
    outside, inside = np.add.reduceat(runs, firsts, axis=0).T
    wrong = (outside + inside)[outside + inside != pixels]
    if len(wrong):
        raise ValueError(f"RLE counts must add up to {pixels} pixels, got {wrong[0]}")
    ink: list[int] = inside.tolist()
    return ink


def _decode_counts(encoded: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Unpacks COCO's text form of run lengths.

    Each run is a signed number of 5-bit digits, lowest first, one character (digit + 48, + 32 if
    more follow) each; from the fourth run on it is the difference to the run two before.

    Args:
        encoded: The texts of some masks, none of them empty.

    Returns:
        Their runs in pairs (outside, inside) of the mask, [P, 2], one mask after the other, the
        last inside 0 where there is none; and the index of each mask's first pair.

    Raises:
        ValueError: If a text is not of this form.
    """
    digits = np.frombuffer(b"".join(encoded), dtype=np.uint8) - np.uint8(48)
    if digits.max() > 63:  # Characters below '0' wrap around.
        raise ValueError("RLE counts hold a character outside '0' to 'o'")
    is_last = digits < 32
    text_ends = np.cumsum([len(text) for text in encoded])
    if not is_last[text_ends - 1].all():
        raise ValueError("RLE counts end in the middle of a run")
    last = np.flatnonzero(is_last)
    lengths = _steps(last + 1)
    # pycocotools shifts digits as 32-bit integers. Sums of shorter runs do not overflow either.
    if lengths.max() > 6:
        raise ValueError("RLE counts hold a run of more than 30 bits")
    changes = (digits[last].astype(np.int64) ^ 16) - 16  # The highest digit has the sign.
    for place in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        changes[longer] = changes[longer] * 32 + (digits[last[longer] - place] & 31)

    ends = np.searchsorted(last, text_ends)
    counts = _steps(ends)
    unpaired = np.flatnonzero(counts % 2)
    pairs = np.insert(changes, ends[unpaired], 0).reshape(-1, 2)
    pair_counts = (counts + 1) // 2
    firsts = np.cumsum(pair_counts) - pair_counts
    sums = pairs.cumsum(axis=0)
    # The first run outside is not part of the sum of those that follow it.
    before = sums[firsts] - pairs[firsts] * [0, 1]
    runs = sums - np.repeat(before, pair_counts, axis=0)
    runs[firsts, 0] = pairs[firsts, 0]
    runs[(firsts + pair_counts - 1)[unpaired], 1] = 0
    return runs, firsts


def _steps(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The differences to the entry before, of the first to 0; faster than numpy.diff."""
    steps = ends.copy()
    steps[1:] -= ends[:-1]
    return steps
