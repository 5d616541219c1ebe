"""Finds annotations that are probably mistakes: from the masks, without the pictures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defvis.data import rle
from defvis.data.dataset import Track, Video
from defvis.data.resize_crop import Size
from defvis.data.sources import natural_key
from defvis.inspection.findings import Finding
from defvis.inspection.survey import most_at_once

# An object is tiny below this many pixels: what a cell of a stride of 4 covers.
_TINY = 16
# A jump: from one frame to the next, a gap between the boxes of this share of the diagonal. An area
# that changes by this factor between frames is odd if the larger one has as many pixels.
_GAP, _FACTOR, _FACTOR_PIXELS = 0.25, 10, 200
# Share of the frame from which a mask is probably not that of an object.
_WHOLE_SHARE = 0.98
# Two masks are one object's if their IoU is this.
_SAME = 0.9
# Two objects change places if the box of each is where the other's was, by this IoU at least, and
# not where its own was.
_THERE, _STAYED = 0.6, 0.3
# Stated areas may be those of polygons, whose pixels are counted another way.
_AREA_SHARE, _AREA_PIXELS = 0.25, 25

_MASKLESS = "objects without a mask in any frame: they are left out"
_NO_OBJECT = "videos without an object"
_ONE_FRAME = "videos of one frame: nothing moves"
_ORDER = "videos whose file_names are not in the order of their numbers"
_SLOTS = "clips with more objects than slots: the smallest are left out"
_SMALL = f"objects of fewer than {_TINY} pixels in every frame"
_WHOLE = f"objects whose mask covers {_WHOLE_SHARE:.0%} of the frame or more"
_JUMP = "objects that jump: from one frame to the next by a quarter of the diagonal or more"
_CHANGE = f"objects whose area changes {_FACTOR} times or more from one frame to the next"
_TWICE = f"two objects with the same mask (IoU of {_SAME} or more)"
_SWAPPED = "two objects that change places from one frame to the next: are their ids exchanged?"
_AREAS = "objects whose stated areas are not those of their masks"


@dataclass(frozen=True)
class _Shapes:
    """Areas and boxes (left, top, width, height) of an object's masks, by frame."""

    areas: dict[int, int]
    boxes: dict[int, tuple[float, ...]]


def odd_objects(
    video: Video, names: Sequence[str], slots: int, frames: int, size: Size
) -> Iterator[Finding]:
    """Looks at every mask of a video.

    Args:
        video: The video; its pictures are not read.
        names: Of the classes.
        slots: The most objects that the model can tell apart.
        frames: Of a training clip.
        size: Height and width at which the model sees the video.
    """
    place = f"video {video.id}"
    tracks = video.objects
    present = [track for track in tracks if track.present]
    if not present:
        yield Finding(_NO_OBJECT, place)
    if video.length == 1:
        yield Finding(_ONE_FRAME, place)
    file_names = [file.as_posix() for file in video.files]
    if file_names != sorted(file_names, key=natural_key):
        yield Finding(_ORDER, f"{place}: {video.files[0].name}, {video.files[1].name}, ...")
    most = most_at_once(video, frames)
    if most > slots:
        yield Finding(_SLOTS, f"{place}: {most} objects, {slots} slots (model.num_slots)")
    for track in tracks:
        if not track.present:
            yield Finding(_MASKLESS, f"{place}, {_name(track, names)}")
    shapes = {track.id: _shapes(track) for track in present}
    scale = min(1.0, size[0] / video.height)
    for track in present:
        where = f"{place}, {_name(track, names)}"
        for finding in _odd_masks(track, shapes[track.id], video, scale):
            yield Finding(finding.kind, f"{where}: {finding.text}")
    for first, second, same, both in _doubles(present, shapes):
        pair = f"{_name(first, names)} and {_name(second, names)}"
        yield Finding(_TWICE, f"{place}, {pair}: in {same} of {both} frames")
    for first, second, swaps in _swaps(present, shapes):
        pair = f"{_name(first, names)} and {_name(second, names)}"
        yield Finding(_SWAPPED, f"{place}, {pair}: {_frames(swaps)}")


def _name(track: Track, names: Sequence[str]) -> str:
    return f"annotation {track.id} ({names[track.label]})"


def _shapes(track: Track) -> _Shapes:
    masks = track.present
    return _Shapes(
        {frame: rle.area(mask) for frame, mask in masks.items()},
        {frame: rle.box(mask) for frame, mask in masks.items()},
    )


def _odd_masks(track: Track, shapes: _Shapes, video: Video, scale: float) -> Iterator[Finding]:
    areas, boxes = shapes.areas, shapes.boxes
    largest = max(areas.values())
    if largest * scale**2 < _TINY:
        yield Finding(
            _SMALL,
            f"at most {largest}" + f", {largest * scale**2:.0f} as the model sees it" * (scale < 1),
        )
    pixels = video.height * video.width
    whole = [frame for frame, area in areas.items() if area >= _WHOLE_SHARE * pixels]
    if whole:
        yield Finding(_WHOLE, _frames(whole))
    pairs = [frame for frame in areas if frame + 1 in areas]
    far = _GAP * math.hypot(video.height, video.width)
    jumps = [frame + 1 for frame in pairs if _gap(boxes[frame], boxes[frame + 1]) >= far]
    if jumps:
        yield Finding(_JUMP, _frames(jumps))
    changes = []
    for frame in pairs:
        low, high = sorted((areas[frame], areas[frame + 1]))
        if high >= _FACTOR * low and high >= _FACTOR_PIXELS:
            changes.append(frame + 1)
    if changes:
        first = changes[0]
        yield Finding(
            _CHANGE, f"{_frames(changes)}: from {areas[first - 1]} to {areas[first]} pixels"
        )
    wrong = [
        frame
        for frame, stated in enumerate(track.areas)
        if stated is not None and _differ(stated, areas.get(frame, 0))
    ]
    if wrong:
        first = wrong[0]
        yield Finding(
            _AREAS,
            f"{_frames(wrong)}: {track.areas[first]:g} is stated, the mask has "
            f"{areas.get(first, 0)}",
        )


def _frames(frames: Sequence[int]) -> str:
    """Names some frames."""
    named = ", ".join(map(str, frames[:3]))
    more = f" and {len(frames) - 3} more" if len(frames) > 3 else ""
    return f"frame{'s' * (len(frames) > 1)} {named}{more}"


def _gap(a: Sequence[float], b: Sequence[float]) -> float:
    """Pixels between two boxes; 0 if they touch."""
    sides = (
        max(0.0, a[axis] - b[axis] - b[axis + 2], b[axis] - a[axis] - a[axis + 2])
        for axis in (0, 1)
    )
    return math.hypot(*sides)


def _differ(stated: float, counted: int) -> bool:
    return abs(stated - counted) > _AREA_PIXELS + _AREA_SHARE * max(stated, counted)


def _doubles(
    tracks: Sequence[Track], shapes: dict[int, _Shapes]
) -> Iterator[tuple[Track, Track, int, int]]:
    """Pairs of objects with the same mask: in how many frames, and of how many with both."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    by_frame: dict[int, list[int]] = defaultdict(list)
    for index, track in enumerate(tracks):
        for frame in shapes[track.id].areas:
            by_frame[frame].append(index)
    for frame, indices in by_frame.items():
        areas = np.array([shapes[tracks[index].id].areas[frame] for index in indices])
        alike = np.minimum(areas[:, None], areas) >= _SAME * np.maximum(areas[:, None], areas)
        for a, b in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
            first, second = tracks[indices[a]], tracks[indices[b]]
            counts[indices[a], indices[b]] += _is_same(first, second, shapes, frame)
    for (a, b), same in counts.items():
        if same:
            both = shapes[tracks[a].id].areas.keys() & shapes[tracks[b].id].areas.keys()
            yield tracks[a], tracks[b], same, len(both)


def _swaps(
    tracks: Sequence[Track], shapes: dict[int, _Shapes]
) -> Iterator[tuple[Track, Track, list[int]]]:
    """Pairs of objects that change places, and the frames in which each is where the other was."""
    swaps: dict[tuple[int, int], list[int]] = defaultdict(list)
    boxes = [shapes[track.id].boxes for track in tracks]
    for frame in range(1, len(tracks[0].masks) if len(tracks) > 1 else 0):
        both = [row for row, own in enumerate(boxes) if frame - 1 in own and frame in own]
        if len(both) < 2:
            continue
        before = np.array([boxes[row][frame - 1] for row in both])
        after = np.array([boxes[row][frame] for row in both])
        overlap = _box_iou(before, after)
        moved = overlap.diagonal() < _STAYED
        there = (overlap >= _THERE) & (overlap.T >= _THERE) & moved & moved[:, None]
        for a, b in zip(*np.nonzero(np.triu(there, 1)), strict=True):
            swaps[both[a], both[b]].append(frame)
    for (a, b), frames in swaps.items():
        yield tracks[a], tracks[b], frames


def _box_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU [A, B] of boxes [A, 4] and [B, 4], left, top, width and height."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], b[:, :2] + b[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    iou: NDArray[np.float64] = shared / (
        a[:, None, 2:].prod(axis=-1) + b[:, 2:].prod(axis=-1) - shared
    )
    return iou


def _is_same(a: Track, b: Track, shapes: dict[int, _Shapes], frame: int) -> bool:
    one, other = shapes[a.id], shapes[b.id]
    mask, other_mask = a.masks[frame], b.masks[frame]
    if mask is None or other_mask is None or _gap(one.boxes[frame], other.boxes[frame]) > 0:
        return False
    shared = rle.intersection(mask, other_mask)
    return shared >= _SAME * (one.areas[frame] + other.areas[frame] - shared)
