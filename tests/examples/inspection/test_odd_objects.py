"""Annotations that are probably mistakes are found, and good ones are not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from defvis.data import rle
from defvis.data.dataset import Track, Video
from defvis.inspection.odd_objects import odd_objects


def _mask(top: int, left: int, height: int, width: int) -> rle.RLE:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return rle.encode(mask)


SQUARE = _mask(5, 5, 20, 20)


def _track(
    number: int,
    *masks: rle.RLE | None,
    areas: tuple[float | None, ...] = (None,) * 3,
    crowd: bool = False,
) -> Track:
    return Track(number, number % 2, masks, areas, crowd)


def _found(*tracks: Track, names: Sequence[str] = "012", height: int = 40) -> list[str]:
    """For 3 slots, clips of 2 frames, and frames of 40 x 60 shown to the model at a height."""
    video = Video(3, 60, 40, tuple(Path(f"{name}.jpg") for name in names), tracks)
    findings = odd_objects(video, ("cat", "dog"), 3, 2, (height, 60 * height // 40))
    return [re.sub("^video 3[,:] ", "", finding.text) for finding in findings]


def test_good_objects() -> None:
    small = [_track(number, *[_mask(30, 9 * number, 5, 5)] * 3) for number in (4, 5)]
    crowd = _track(2, *[SQUARE] * 3, crowd=True)
    assert not _found(_track(1, *[SQUARE] * 3, areas=(400, 410.5, None)), *small, crowd)


@pytest.mark.parametrize(
    ("track", "found"),
    [
        (_track(1, _mask(0, 0, 3, 5), None, None), "at most 15"),
        (_track(1, None, None, _mask(0, 0, 40, 60)), "frame 2"),
        (_track(1, _mask(0, 0, 5, 5), _mask(35, 55, 5, 5), None), "frame 1"),
        (_track(1, SQUARE, _mask(9, 9, 5, 5), SQUARE), "frames 1, 2: from 400 to 25 pixels"),
        (_track(1, *[SQUARE] * 3, areas=(400, 90, None)),
         "frame 1: 90 is stated, the mask has 400"),
        (_track(1, SQUARE, SQUARE, None, areas=(400, 400, 90)),
         "frame 2: 90 is stated, the mask has 0"),
    ],
    ids=["tiny", "whole frame", "jump", "area", "stated", "stated of none"],
)  # fmt: skip
def test_odd_masks(track: Track, found: str) -> None:
    assert _found(track) == [f"annotation 1 (dog): {found}"]


def test_an_object_may_be_tiny_for_the_model_alone() -> None:
    track = _track(1, *[_mask(0, 0, 6, 6)] * 3)
    assert not _found(track, height=40)
    assert _found(track, height=20) == ["annotation 1 (dog): at most 36, 9 as the model sees it"]


def test_an_object_annotated_twice() -> None:
    other = _track(2, _mask(5, 5, 20, 19), None, _mask(5, 5, 9, 20))
    pair = "annotation 1 (dog) and annotation 2 (cat)"
    assert _found(_track(1, *[SQUARE] * 3), other) == [f"{pair}: in 1 of 2 frames"]


def test_two_objects_that_change_places() -> None:
    left, right = _mask(5, 2, 20, 10), _mask(6, 40, 20, 9)
    pair = "annotation 1 (dog) and annotation 2 (cat)"
    found = _found(_track(1, left, left, right), _track(2, right, right, left))
    assert f"{pair}: frame 2" in found
    assert len(found) == 3, "each jumps too"
    meet = _mask(5, 20, 20, 10), _mask(6, 26, 20, 9)
    assert not _found(_track(1, left, meet[0], right), _track(2, right, meet[1], left))


def test_more_objects_in_a_clip_than_slots() -> None:
    """Not all that the video has: a clip shows two frames."""
    tracks = [
        _track(number, *(_mask(9 * number, 0, 8 - number, 9) if seen else None for seen in shown))
        for number, shown in enumerate(["111", "111", "1..", ".11"])
        for shown in [[sign == "1" for sign in shown]]
    ]
    assert _found(*tracks) == ["4 objects, 3 slots (model.num_slots)"]
    assert not _found(*tracks[:3])


def test_odd_videos() -> None:
    empty = _track(2, None, None, None)
    assert _found(empty) == ["video 3", "annotation 2 (cat)"]
    good = _track(1, *[SQUARE] * 3)
    assert _found(good, names=["9", "10", "11"]) == []
    assert _found(good, names=["10", "11", "9"]) == ["10.jpg, 11.jpg, ..."]
    assert _found(_track(1, SQUARE), names="0") == ["video 3"]
