"""Tracks of rectangles in small frames, as ground truth and as results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from defvis.data import rle
from defvis.data.dataset import Track, Video, YouTubeVIS
from defvis.data.rle import RLE

SIDE = 20


def block(left: int, width: int = 5, height: int = 10) -> RLE:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:height, left : left + width] = True
    return rle.encode(mask)


def track(
    number: int, masks: list[RLE | None], label: int = 0, crowd: bool = False, area: float = 0
) -> Track:
    areas = [None if m is None else (area or rle.area(m)) for m in masks]
    return Track(number, label, tuple(masks), tuple(areas), crowd)


def dataset(*videos: list[Track], length: int = 4, classes: int = 1) -> YouTubeVIS:
    return YouTubeVIS(
        tuple(
            Video(number, SIDE, SIDE, (Path("x"),) * length, tuple(tracks))
            for number, tracks in enumerate(videos, start=1)
        ),
        tuple(10 + label for label in range(classes)),
        tuple("abc"[:classes]),
    )


def result(
    masks: list[RLE | None], score: float, video: int = 1, category: int = 10
) -> dict[str, Any]:
    return {
        "video_id": video,
        "category_id": category,
        "score": score,
        "segmentations": [None if m is None else rle.to_json(m) for m in masks],
    }


A, B, C = block(0), block(5), block(10)
