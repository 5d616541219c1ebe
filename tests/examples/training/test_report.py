"""The pictures at the end of a run show a bounded number of frames of a long video."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from defvis.data.dataset import YouTubeVIS
from defvis.training import report
from defvis.training.log import Row
from defvis.training.plots import draw_curves


@dataclass
class Counted:
    """A video that notes which frames are read."""

    length: int
    read: list[int] = field(default_factory=list)
    id: int = 7
    width: int = 96
    height: int = 64
    tracks: tuple[Any, ...] = ()

    def frame(self, index: int) -> np.ndarray:
        self.read.append(index)
        return np.full((self.height, self.width, 3), 97 * index % 256, dtype=np.uint8)


@pytest.mark.parametrize(
    ("length", "strip", "animated"), [(6, 6, 6), (12, 12, 12), (30, 10, 30), (1000, 12, 100)]
)
def test_strip_and_animation_are_bounded(
    length: int, strip: int, animated: int, tmp_path: Path
) -> None:
    video: Any = Counted(length)
    report._draw(tmp_path, video, [], [])
    # The strip asks for the size of its first picture once more.
    assert len(video.read) == 1 + 3 * strip + animated
    with Image.open(tmp_path / "video00007.png") as picture:
        width, height = {6: (288, 192), 10: (198, 132), 12: (164, 109)}[strip]
        assert picture.size == (strip * (width + 2) - 2, 3 * (height + 14))
        assert picture.width <= 2000
        shown = np.asarray(picture)
        columns = [shown[20, 10 + (width + 2) * column, 0] for column in range(strip)]
    step = -(-length // 12)
    assert columns == [97 * index % 256 for index in range(0, length, step)]
    with Image.open(tmp_path / "video00007.webp") as film:
        assert film.n_frames == animated


def test_classes_of_one_name_are_told_apart() -> None:
    data = YouTubeVIS((), (3, 5, 9), ("cat", "dog", "cat"))
    assert report._distinct(data) == ["cat (id 3)", "dog", "cat (id 9)"]


def test_legends_hide_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten losses of two stages and all figures, beside their axes and inside the picture."""
    losses = dict.fromkeys(("class", "giou", "mask", "dice", "dense"), 0.5)
    figures = dict.fromkeys(("AP", "AP50", "AP75"), 0.5)
    rows: list[Row] = [
        {"kind": kind, "stage": stage, "minutes": minutes, "videos": minutes, **losses, **figures}
        for stage, minutes in (("backbone", 1), ("backbone", 2), ("joint", 3), ("joint", 4))
        for kind in ("train", "val")
    ]
    drawn: list[Figure] = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **words: (
        drawn.append(figure), real(figure, *args, **words)))  # fmt: skip
    draw_curves(rows, tmp_path / "curves.png")
    left, right = drawn[0].axes
    assert [len(axes.get_legend().get_texts()) for axes in (left, right)] == [11, 6]
    for axes in (left, right):
        legend = axes.get_legend().get_window_extent()
        assert not any(legend.overlaps(each.get_window_extent()) for each in (left, right))
        assert legend.y0 >= 0
        assert legend.x1 <= drawn[0].bbox.x1
