"""Writes the digits world to disk as a YouTube-VIS dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from tqdm import tqdm

from defvis.data import rle
from defvis.data.digits import LEVELS, Scene, draw_scene
from defvis.data.digits_render import Renderer

SPLITS = ("train", "val")
# Share of the 1,797 handwritten digits kept for validation.
_VAL_SHARE = 0.2


@dataclass(frozen=True)
class DigitsSettings:
    """What to write.

    Attributes:
        train_videos: Videos of the train split.
        val_videos: Videos of the val split, drawn with handwriting that train never shows.
        frames: Frames per video.
        height: Frame height in pixels.
        width: Frame width in pixels.
        level: One of "easy", "mixed", "medium", "hard".
        seed: The same seed and settings give the same bytes.
    """

    train_videos: int = 2400
    val_videos: int = 100
    frames: int = 6
    height: int = 64
    width: int = 96
    level: str = "mixed"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {sorted(LEVELS)}, got {self.level!r}")
        for name in ("train_videos", "val_videos", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("height", "width"):
            if not 32 <= getattr(self, name) <= 400:
                raise ValueError(
                    f"{name} must be 32 to 400 pixels (textures have 512), "
                    f"got {getattr(self, name)}"
                )


def write_digits(root: Path, settings: DigitsSettings, progress: bool = True) -> None:
    """Writes `root/train` and `root/val`, each with `JPEGImages/` and `instances.json`.

    The dataset is written beside `root` first and then moved there, so that an interrupted run
    leaves no half dataset behind.

    Args:
        root: Folder to create.
        settings: What to write.
        progress: Shows a progress bar.

    Raises:
        FileExistsError: If `root` exists.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists already; remove it or choose another folder")
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    renderer = Renderer(digits.images, settings.height, settings.width)
    total = settings.train_videos + settings.val_videos
    with tqdm(total=total, desc="digits", unit="video", disable=not progress) as bar:
        for split, count in zip(SPLITS, (settings.train_videos, settings.val_videos), strict=True):
            images = handwriting(split, labels)
            _write_split(partial / split, split, count, settings, renderer, images, labels, bar)
    (partial / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    partial.rename(root)


def handwriting(split: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the digit images of a split. The cut is the same for every seed."""
    order = np.random.default_rng(0).permutation(len(labels))
    cut = round(len(labels) * _VAL_SHARE)
    return np.sort(order[cut:] if split == "train" else order[:cut])


def _write_split(
    folder: Path,
    split: str,
    count: int,
    settings: DigitsSettings,
    renderer: Renderer,
    images: NDArray[np.int64],
    labels: NDArray[np.int64],
    bar: Any,
) -> None:
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video_id in range(1, count + 1):
        random = np.random.default_rng((settings.seed, SPLITS.index(split), video_id))
        scene = draw_scene(
            random,
            LEVELS[settings.level],
            images,
            labels,
            settings.frames,
            settings.height,
            settings.width,
            renderer.num_textures,
        )
        pixels, masks = renderer.render(scene, random)
        names = [f"{video_id:05d}/{frame:05d}.jpg" for frame in range(settings.frames)]
        (folder / "JPEGImages" / f"{video_id:05d}").mkdir(parents=True)
        for name, frame in zip(names, pixels, strict=True):
            Image.fromarray(frame).save(folder / "JPEGImages" / name, quality=92)
        videos.append(
            {
                "id": video_id,
                "width": settings.width,
                "height": settings.height,
                "length": settings.frames,
                "file_names": names,
            }
        )
        for annotation in _annotations(scene, masks, video_id):
            annotations.append({"id": len(annotations) + 1, **annotation})
        bar.update()
    content = {
        "info": {"description": "Handwritten digits moving over textures", "split": split},
        "videos": videos,
        "categories": [
            {"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)
        ],
        "annotations": annotations,
    }
    (folder / "instances.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def _annotations(scene: Scene, masks: NDArray[np.bool_], video_id: int) -> Iterable[dict[str, Any]]:
    """One annotation per digit that is seen at all.

    `digit_image` and `motion` are not part of the format: they say which handwriting was used
    and how the digit moves.
    """
    height, width = masks.shape[2:]
    for digit, frames in zip(scene.digits, masks, strict=True):
        if not frames.any():
            continue
        present = [frame if frame.any() else None for frame in frames]
        yield {
            "video_id": video_id,
            "category_id": digit.label + 1,
            "iscrowd": 0,
            "height": height,
            "width": width,
            "length": len(frames),
            "segmentations": [
                None if frame is None else rle.to_json(rle.encode(frame)) for frame in present
            ],
            "bboxes": [None if frame is None else _bbox(frame) for frame in present],
            "areas": [None if frame is None else int(frame.sum()) for frame in present],
            "digit_image": digit.image,
            "motion": digit.motion,
        }


def _bbox(mask: NDArray[np.bool_]) -> list[int]:
    """[x, y, width, height] in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
