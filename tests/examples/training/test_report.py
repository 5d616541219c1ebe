"""The pictures at the end of a run show a bounded number of frames of a long video."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defvis.data.dataset import YouTubeVIS
from defvis.training import report


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
        assert picture.size == (strip * (2 * 96 + 2) - 2, 3 * (2 * 64 + 14))
        columns = [np.asarray(picture)[20, 10 + 194 * column, 0] for column in range(strip)]
    step = -(-length // 12)
    assert columns == [97 * index % 256 for index in range(0, length, step)]
    with Image.open(tmp_path / "video00007.webp") as film:
        assert film.n_frames == animated


def test_classes_of_one_name_are_told_apart() -> None:
    data = YouTubeVIS((), (3, 5, 9), ("cat", "dog", "cat"))
    assert report._distinct(data) == ["cat (id 3)", "dog", "cat (id 9)"]
