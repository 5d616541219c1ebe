"""Writes the digits world to disk as a YouTube-VIS dataset."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from defvis.datasets.digits import DEFAULT_LEVEL, LEVELS, draw_scene
from defvis.datasets.digits_render import Renderer
from defvis.datasets.ytvis_writer import SplitWriter
from defvis.programs import LOCK, only_run_in
from defvis.progress import Progress

SPLITS = ("train", "val")
_SETTINGS = "settings.json"
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
        level: A name in `LEVELS`.
        seed: The same seed and settings give the same bytes.
    """

    train_videos: int = 2400
    val_videos: int = 100
    frames: int = 6
    height: int = 64
    width: int = 96
    level: str = DEFAULT_LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {sorted(LEVELS)}, got {self.level!r}")
        for name in ("train_videos", "val_videos", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for name in ("height", "width"):
            if not 32 <= getattr(self, name) <= 400:
                raise ValueError(
                    f"{name} must be 32 to 400 pixels (textures have 512), "
                    f"got {getattr(self, name)}"
                )


def write_digits(root: Path, settings: DigitsSettings, progress: bool = True) -> None:
    """Writes `root/train` and `root/val`, each with `JPEGImages/` and `instances.json`.

    The dataset is written to another folder, which is then renamed to `root`: an interrupted run
    leaves no incomplete dataset, and no other run writes to it meanwhile.

    Args:
        root: Folder to create.
        settings: What to write.
        progress: Shows progress.

    Raises:
        FileExistsError: If `root` exists, or another live run writes it.
        OSError: If it cannot be written.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists already; remove it or choose another folder")
    partial = root.with_name(root.name + ".partial")
    with only_run_in(partial):
        try:
            for name in (*SPLITS, _SETTINGS):  # Of a run that was killed.
                _remove(partial / name)
            _write_splits(partial, settings, progress)
            (partial / LOCK).unlink(missing_ok=True)
            partial.rename(root)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _write_splits(folder: Path, settings: DigitsSettings, progress: bool) -> None:
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    renderer = Renderer(digits.images, settings.height, settings.width)
    total = settings.train_videos + settings.val_videos
    with Progress("digits", "video", total, disable=not progress) as shown:
        for split, count in zip(SPLITS, (settings.train_videos, settings.val_videos), strict=True):
            images = handwriting(split, labels)
            _write_split(folder / split, split, count, settings, renderer, images, labels, shown)
    (folder / _SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n")


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
    shown: Progress,
) -> None:
    writer = SplitWriter(folder)
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
        # `digit_image` and `motion` are not part of the format: they say which handwriting was
        # used and how the digit moves.
        fields = [
            {"category_id": d.label + 1, "digit_image": d.image, "motion": d.motion}
            for d in scene.digits
        ]
        writer.add(pixels, masks, fields)
        shown.update()
    writer.close(
        {"description": "Handwritten digits moving over textures", "split": split},
        [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)],
    )
