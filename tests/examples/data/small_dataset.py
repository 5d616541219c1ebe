"""A small YouTube-VIS dataset with masks in every form, written to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from defvis.data.ytvis import find_files

CONTENT: dict[str, Any] = {
    "videos": [
        {"id": 7, "width": 8, "height": 6, "length": 3,
         "file_names": ["a/0.jpg", "a/1.jpg", "a/2.jpg"]},
    ],
    "categories": [{"id": 40, "name": "racket"}, {"id": 3, "name": "lizard"}],
    "annotations": [
        {"id": 11, "video_id": 7, "category_id": 40, "iscrowd": 0,
         "segmentations": [{"size": [6, 8], "counts": [0, 6, 42]}, None,
                           [[0, 0, 4, 0, 4, 3, 0, 3]]],
         "bboxes": [[0, 0, 1, 6], None, [0, 0, 4, 3]], "areas": [6, None, 12]},
        {"id": 12, "video_id": 7, "category_id": 3, "iscrowd": 1,
         "segmentations": [None, None, None]},
    ],
}  # fmt: skip


def write_dataset(root: Path, content: object) -> tuple[Path, Path]:
    """Writes three frames and `content`; returns annotation file and frame folder."""
    (root / "JPEGImages" / "a").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (8, 6), (index, 100, 200)).save(root / "JPEGImages" / f"a/{index}.jpg")
    (root / "instances.json").write_text(json.dumps(content))
    return find_files(root)
