"""Writes one split of a YouTube-VIS dataset: frames as JPEG, everything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defvis.data import rle


class SplitWriter:
    """Collects the videos of a split and writes them.

    Args:
        folder: Where `JPEGImages/` and `instances.json` go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._videos: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(
        self,
        pixels: NDArray[np.uint8],
        masks: NDArray[np.bool_],
        fields: Sequence[Mapping[str, Any]],
    ) -> None:
        """Writes the frames of a video and notes its objects.

        Args:
            pixels: RGB [T, H, W, 3].
            masks: [G, T, H, W]; objects without a pixel are left out.
            fields: `category_id` of each object, and further entries of its annotation.
        """
        video_id = len(self._videos) + 1
        length, height, width = pixels.shape[:3]
        names = [f"{video_id:05d}/{frame:05d}.jpg" for frame in range(length)]
        (self._folder / "JPEGImages" / f"{video_id:05d}").mkdir(parents=True)
        for name, frame in zip(names, pixels, strict=True):
            Image.fromarray(frame).save(self._folder / "JPEGImages" / name, quality=92)
        self._videos.append(
            {
                "id": video_id,
                "width": width,
                "height": height,
                "length": length,
                "file_names": names,
            }
        )
        for frames, own in zip(masks, fields, strict=True):
            if frames.any():
                self._annotations.append(
                    {
                        "id": len(self._annotations) + 1,
                        "video_id": video_id,
                        **_annotation(frames),
                        **own,
                    }
                )

    def close(self, info: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]) -> None:
        """Writes `instances.json`."""
        content = {
            "info": info,
            "videos": self._videos,
            "categories": categories,
            "annotations": self._annotations,
        }
        file = self._folder / "instances.json"
        file.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _annotation(masks: NDArray[np.bool_]) -> dict[str, Any]:
    """The fields that follow from the masks [T, H, W]."""
    length, height, width = masks.shape
    present = [mask if mask.any() else None for mask in masks]
    return {
        "iscrowd": 0,
        "height": height,
        "width": width,
        "length": length,
        "segmentations": [
            None if mask is None else rle.to_json(rle.encode(mask)) for mask in present
        ],
        "bboxes": [None if mask is None else _bbox(mask) for mask in present],
        "areas": [None if mask is None else int(mask.sum()) for mask in present],
    }


def _bbox(mask: NDArray[np.bool_]) -> list[int]:
    """[x, y, width, height] in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
