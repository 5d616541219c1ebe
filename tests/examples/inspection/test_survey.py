"""What a dataset is like, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defvis.data import rle
from defvis.data.dataset import Track, Video, YouTubeVIS
from defvis.inspection import survey
from defvis.inspection.survey import ClassCount, Spread


def _square(side: int) -> rle.RLE:
    mask = np.zeros((20, 40), dtype=bool)
    mask[:side, :side] = True
    return rle.encode(mask)


def _track(label: int, sides: tuple[int, ...], crowd: bool = False) -> Track:
    masks = tuple(_square(side) if side else None for side in sides)
    # The stated areas are of no use: they may be of larger frames.
    return Track(0, label, masks, (1.0,) * len(sides), crowd)


def _video(number: int, height: int, width: int, *tracks: Track, length: int = 4) -> Video:
    return Video(number, width, height, (Path("x"),) * length, tracks)


def test_everything_is_counted() -> None:
    two = _video(
        1, 20, 40, _track(0, (2, 2, 0, 4)), _track(0, (0, 4, 4, 4)), _track(1, (9,) * 4, crowd=True)
    )
    one = _video(2, 40, 20, _track(0, (2, 2, 2, 2)), _track(2, (0, 0, 0, 0)))
    none = _video(3, 20, 40, length=9)
    found = survey.survey(YouTubeVIS((two, one, none), (1, 2, 3), ("a", "b", "c")))
    assert found == survey.Survey(
        videos=3,
        frames=17,
        objects=3,
        crowd=1,
        maskless=1,
        masks=10,
        videos_without_objects=1,
        lengths=Spread(4, 4, 4, 8.5, 9),
        sizes=(((20, 40), 2), ((40, 20), 1)),
        short_sides=Spread(20, 20, 20, 20, 20),
        objects_per_video=Spread(0, pytest.approx(0.1), 1, pytest.approx(1.9), 2),
        object_sizes=Spread(0.1, 0.1, 0.1, 0.2, 0.2),
        presence=10 / 12,
        classes=(ClassCount("a", 3, 2), ClassCount("b", 0, 0), ClassCount("c", 0, 0)),
    )


def test_no_object() -> None:
    found = survey.survey(YouTubeVIS((_video(1, 20, 40),), (1,), ("a",)))
    assert found.object_sizes == found.objects_per_video == Spread(0, 0, 0, 0, 0)
    assert found.presence == 0


def test_of_many_masks_some_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second mask is large, so that every n-th one would all be."""
    data = YouTubeVIS((_video(1, 20, 40, *[_track(0, (16, 4, 16, 4))] * 30),), (1,), ("a",))
    monkeypatch.setattr(survey, "_MEASURED", 60)
    found = survey.survey(data)
    assert (found.masks, found.object_sizes.low, found.object_sizes.most) == (120, 0.2, 0.8)
    assert found == survey.survey(data)


def test_the_most_objects_in_a_clip() -> None:
    """They come and go: three in all, never more than two in two frames."""
    video = _video(
        1, 20, 40, _track(0, (2, 2, 0, 0)), _track(0, (0, 2, 0, 0)), _track(0, (0, 0, 0, 2)),
        _track(1, (9,) * 4, crowd=True),
    )  # fmt: skip
    assert [survey.most_at_once(video, frames) for frames in (1, 2, 3, 9)] == [2, 2, 3, 3]
    assert survey.most_at_once(_video(2, 20, 40), 3) == 0
