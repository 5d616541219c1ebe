"""Objects that are split, merged or swapped: errors that only tracks have, from frame to frame.

A result holds an object in a frame if their masks have an IoU of at least 0.5 there and neither
has a higher one with another that is free (pairs are made by falling IoU). Classes do not matter,
and of results with the same masks the one with the highest score stands for all. Crowds are left
out. Then

- two objects are **swapped** if one result holds first the one and later the other, and a second
  result first the other and later the one;
- an object is **split** if two results that are not of a swap, each with more than half of its
  pixels in the object, share it: of the object's pixels, each has at least a tenth that the other
  lacks;
- a result has **merged** two objects if, in at least half of the frames in which both are
  visible, it has at least half of the pixels of each, and no other result holds one of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from defvis.evaluation.comparison import Comparison

# IoU with which a result holds an object in a frame.
HELD = 0.5
# Share of its pixels that a result must have in an object to be a part of it.
_INSIDE = 0.5
# Share of an object's pixels that one part has and another lacks.
_PART = 0.1
# Share of an object's pixels in a frame that a result which merges it must have; share of frames.
_COVERED, _FRAMES = 0.5, 0.5


@dataclass(frozen=True)
class Split:
    """An object and the results that share it, by falling score."""

    truth: int
    results: tuple[int, ...]


@dataclass(frozen=True)
class Merged:
    """A result, the objects that it covers at once, and the frames in which it covers two."""

    result: int
    truths: tuple[int, ...]
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Swapped:
    """Two objects, the results that exchange them, and the first frame after the exchange."""

    truths: tuple[int, int]
    results: tuple[int, int]
    frame: int


@dataclass(frozen=True)
class Identities:
    """What happens to the objects of a video.

    Attributes:
        holder: Result that holds each object in each frame, [G, length]; -1 for none.
        split: Objects that are split.
        merged: Results that merge objects.
        swapped: Pairs of objects.
    """

    holder: NDArray[np.int64]
    split: tuple[Split, ...]
    merged: tuple[Merged, ...]
    swapped: tuple[Swapped, ...]


def find_identities(comparison: Comparison, least_score: float = -np.inf) -> Identities:
    """Follows the objects of a video through its frames; results and objects by their index.

    Args:
        comparison: The video.
        least_score: Results of less score are taken as not there.
    """
    # One result for each of the comparison's different masks; -1 if none has the score.
    result = np.full(len(comparison.masks), -1)
    for index in np.argsort(comparison.scores, kind="stable").tolist():
        if comparison.scores[index] >= least_score:
            result[comparison.tracks[index]] = index
    holder = _find_holders(comparison, result)
    swapped = _find_swaps(holder)
    exchanged = {index for swap in swapped for index in swap.results}
    split = _find_splits(comparison, [index for index in result.tolist() if index >= 0], exchanged)
    return Identities(holder, split, _find_merges(comparison, result, holder), swapped)


def _find_holders(comparison: Comparison, result: NDArray[np.int64]) -> NDArray[np.int64]:
    overlaps = comparison.overlaps
    holder = np.full((len(comparison.video.tracks), comparison.video.length), -1)
    usable = (result[overlaps.first] >= 0) & ~comparison.crowd[overlaps.second]
    iou = overlaps.frame_iou
    entries = np.flatnonzero(usable & (iou >= HELD))
    busy: set[tuple[int, int]] = set()
    for entry in entries[np.argsort(-iou[entries], kind="stable")].tolist():
        track, truth, frame = (
            int(part[entry]) for part in (overlaps.first, overlaps.second, overlaps.frames)
        )
        if holder[truth, frame] < 0 and (track, frame) not in busy:
            holder[truth, frame] = result[track]
            busy.add((track, frame))
    return holder


def _find_swaps(holder: NDArray[np.int64]) -> tuple[Swapped, ...]:
    # First frame in which a result holds an object.
    first: list[dict[int, int]] = []
    for row in holder:
        held, frames = np.unique(row, return_index=True)
        first.append(dict(zip(held.tolist(), frames.tolist(), strict=True)))
    swaps = []
    for a, b in itertools.combinations(range(len(holder)), 2):
        both = sorted(first[a].keys() & first[b].keys() - {-1})
        from_a = [one for one in both if first[a][one] < first[b][one]]
        from_b = [one for one in both if first[b][one] < first[a][one]]
        # Any two of them are a swap; one is enough to say so.
        if from_a and from_b:
            one, other = from_a[0], from_b[0]
            frame = min(first[b][one], first[a][other])
            swaps.append(Swapped((a, b), (one, other), frame))
    return tuple(swaps)


def _find_splits(
    comparison: Comparison, results: list[int], exchanged: set[int]
) -> tuple[Split, ...]:
    overlaps, tracks = comparison.overlaps, comparison.tracks
    shared = overlaps.shared_pixels
    splits = []
    for truth, track in enumerate(comparison.video.tracks):
        if track.is_crowd:
            continue
        area = int(overlaps.second_areas[truth])
        parts = [
            index
            for index in results
            if index not in exchanged
            and shared[tracks[index], truth] > _INSIDE * overlaps.first_areas[tracks[index]]
            and shared[tracks[index], truth] >= _PART * area
        ]
        shares: set[int] = set()
        for one, other in itertools.combinations(parts, 2):
            common = _common(comparison, truth, one, other)
            least = min(shared[tracks[one], truth], shared[tracks[other], truth])
            if least - common >= _PART * area:
                shares |= {one, other}
        if shares:
            by_score = sorted(shares, key=lambda index: (-comparison.scores[index], index))
            splits.append(Split(truth, tuple(by_score)))
    return tuple(splits)


def _common(comparison: Comparison, truth: int, one: int, other: int) -> int:
    """Pixels that two results and an object share."""
    masks = comparison.video.tracks[truth].masks
    a, b = comparison.detections[one].masks, comparison.detections[other].masks
    return sum(
        int(coco_mask.area(coco_mask.merge([a[frame], b[frame], mask], intersect=True)))
        for frame in a.keys() & b.keys()
        if (mask := masks[frame]) is not None
    )


def _find_merges(
    comparison: Comparison, result: NDArray[np.int64], holder: NDArray[np.int64]
) -> tuple[Merged, ...]:
    overlaps, truths = comparison.overlaps, comparison.video.tracks
    index, truth, frame = result[overlaps.first], overlaps.second, overlaps.frames
    own = (holder[truth, frame] == index) | (holder[truth, frame] < 0)
    much = overlaps.shared >= _COVERED * overlaps.second_pixels
    chosen = (index >= 0) & ~comparison.crowd[truth] & own & much
    # The objects that a result covers in a frame.
    covered: dict[int, dict[int, list[int]]] = {}
    for one, of, at in zip(*(part[chosen].tolist() for part in (index, truth, frame)), strict=True):
        covered.setdefault(one, {}).setdefault(at, []).append(of)
    merges = []
    for one, by_frame in sorted(covered.items()):
        together: dict[tuple[int, int], list[int]] = {}
        for at, found in by_frame.items():
            for pair in itertools.combinations(sorted(found), 2):
                together.setdefault(pair, []).append(at)
        merged: set[int] = set()
        frames: set[int] = set()
        for (a, b), common in together.items():
            visible = len(truths[a].present.keys() & truths[b].present.keys())
            if len(common) >= _FRAMES * visible:
                merged |= {a, b}
                frames.update(common)
        if merged:
            merges.append(Merged(one, tuple(sorted(merged)), tuple(sorted(frames))))
    return tuple(merges)
