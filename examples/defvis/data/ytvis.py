"""Reads and checks a YouTube-VIS dataset (2019, 2021): a JSON file and folders of frames."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from defvis.data import rle
from defvis.data.errors import DataError
from defvis.data.pictures import read_picture
from defvis.data.read_json import read_json
from defvis.data.rle import RLE

# The runs of a mask this large still fit into the 30 bits that `rle` reads.
_MAX_PIXELS = 2**29 - 1


class Frames(Protocol):
    """What can be decoded frame by frame: a `Video` of a dataset, a file, a folder."""

    @property
    def id(self) -> int:
        """Number of the video, unique in its dataset."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def length(self) -> int:
        """Number of frames."""

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Decodes one frame to RGB [H, W, 3]."""


@dataclass(frozen=True)
class Track:
    """One object through a video.

    Attributes:
        id: Annotation id.
        label: Contiguous class index, 0 to num_classes - 1.
        masks: One entry per frame of the video; None where the object is absent.
        areas: Pixels per frame as the file states them, or counted where it does not.
        is_crowd: True for a region of many objects, which training leaves out.
    """

    id: int
    label: int
    masks: tuple[RLE | None, ...]
    areas: tuple[float | None, ...]
    is_crowd: bool


@dataclass(frozen=True)
class Video:
    """One video: the files of its frames and its objects."""

    id: int
    width: int
    height: int
    files: tuple[Path, ...]
    tracks: tuple[Track, ...]

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.files)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Decodes one frame to RGB [H, W, 3]; a missing or broken file is a DataError."""
        path = self.files[index]
        try:
            pixels = read_picture(path)
        except DataError as error:
            raise DataError(f"video {self.id}, frame {index}: {error}") from error
        if pixels.shape[:2] != (self.height, self.width):
            raise DataError(
                f"video {self.id}, frame {index}: {path} must be {self.width} x {self.height} "
                f"pixels, got {pixels.shape[1]} x {pixels.shape[0]}"
            )
        return pixels


@dataclass(frozen=True)
class YouTubeVIS:
    """A whole dataset.

    Attributes:
        videos: In file order.
        category_ids: The file's category id of each class index.
        category_names: The name of each class index.
    """

    videos: tuple[Video, ...]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of categories."""
        return len(self.category_ids)

    def first(self, count: int) -> YouTubeVIS:
        """The dataset with its first `count` videos only."""
        return replace(self, videos=self.videos[:count])


def hold_out(data: YouTubeVIS, every: int) -> tuple[YouTubeVIS, YouTubeVIS]:
    """Splits off every n-th video for validation; returns (train, val).

    Raises:
        DataError: If one of the two would be empty.
    """
    val = data.videos[every - 1 :: every]
    held = {video.id for video in val}
    train = tuple(video for video in data.videos if video.id not in held)
    if not train or not val:
        raise DataError(f"{len(data.videos)} videos are too few to hold out every {every}th")
    return replace(data, videos=train), replace(data, videos=val)


def find_files(root: Path) -> tuple[Path, Path]:
    """Finds annotation file and frame folder of a split.

    Args:
        root: Folder with `instances.json` (or `annotations.json`, as the 2021 download names it)
            and `JPEGImages/`; or the annotation file itself; its frames may be missing.

    Raises:
        DataError: If either is missing.
    """
    if root.is_file():
        return root, root.parent / "JPEGImages"
    names = ("instances.json", "annotations.json")
    found = [root / name for name in names if (root / name).is_file()]
    if not found:
        raise DataError(f"{root} holds none of {', '.join(names)}")
    frames = root / "JPEGImages"
    if not frames.is_dir():
        raise DataError(f"{root} has no folder JPEGImages")
    return found[0], frames


def load(annotation_file: Path, frame_folder: Path) -> YouTubeVIS:
    """Reads a dataset and checks everything but the pixels.

    Args:
        annotation_file: JSON with videos, categories and (except in test sets) annotations.
        frame_folder: What the videos' `file_names` are relative to.

    Raises:
        DataError: With file, video and annotation, for broken JSON, missing fields, unknown or
            repeated ids, lists of another length than the video, and masks of another size.
    """
    where = str(annotation_file)
    content = read_json(annotation_file, dict, DataError)
    categories = sorted(_rows(content, "categories", where), key=lambda row: _int(row, "id", where))
    category_ids = tuple(_int(row, "id", f"{where}: category") for row in categories)
    if len(set(category_ids)) < len(category_ids):
        raise DataError(f"{where}: category ids repeat")
    labels = {category_id: label for label, category_id in enumerate(category_ids)}

    videos: dict[int, Video] = {}
    for row in _rows(content, "videos", where):
        video_id = _int(row, "id", f"{where}: video")
        if video_id in videos:
            raise DataError(f"{where}: video id {video_id} repeats")
        videos[video_id] = _video(row, frame_folder, f"{where}: video {video_id}")

    tracks: dict[int, list[Track]] = {video_id: [] for video_id in videos}
    seen: set[int] = set()
    for row in _rows(content, "annotations", where, missing_ok=True):
        annotation_id = _int(row, "id", f"{where}: annotation")
        place = f"{where}: annotation {annotation_id}"
        if annotation_id in seen:
            raise DataError(f"{place}: its id repeats")
        seen.add(annotation_id)
        video_id = _int(row, "video_id", place)
        if video_id not in videos:
            raise DataError(f"{place}: there is no video {video_id}")
        place = f"{where}: video {video_id}, annotation {annotation_id}"
        tracks[video_id].append(_track(row, videos[video_id], labels, place))
    return YouTubeVIS(
        videos=tuple(replace(video, tracks=tuple(tracks[video.id])) for video in videos.values()),
        category_ids=category_ids,
        category_names=tuple(str(row.get("name", row["id"])) for row in categories),
    )


def _video(row: Mapping[str, Any], folder: Path, place: str) -> Video:
    names = _list(row, "file_names", place)
    if not names:
        raise DataError(f"{place}: file_names is empty")
    if "length" in row and row["length"] != len(names):
        raise DataError(f"{place}: length is {row['length']}, but file_names has {len(names)}")
    width, height = _int(row, "width", place), _int(row, "height", place)
    if width < 1 or height < 1:
        raise DataError(f"{place}: width and height must be at least 1, got {width} x {height}")
    if width * height > _MAX_PIXELS:
        raise DataError(
            f"{place}: width x height must be at most {_MAX_PIXELS} pixels, got {width} x {height}"
        )
    if any(not isinstance(name, str) for name in names):
        raise DataError(f"{place}: file_names must hold strings")
    return Video(
        id=_int(row, "id", place),
        width=width,
        height=height,
        files=tuple(folder / name for name in names),
        tracks=(),
    )


def _track(row: Mapping[str, Any], video: Video, labels: Mapping[int, int], place: str) -> Track:
    category = _int(row, "category_id", place)
    if category not in labels:
        raise DataError(f"{place}: there is no category {category}")
    for name in ("segmentations", "bboxes", "areas"):
        if name == "segmentations" or row.get(name) is not None:
            entries = _list(row, name, place)
            if len(entries) != video.length:
                raise DataError(
                    f"{place}: {name} must have one entry per frame, {video.length}, "
                    f"got {len(entries)}"
                )
    masks: list[RLE | None] = []
    for frame, segmentation in enumerate(row["segmentations"]):
        try:
            masks.append(
                None
                if segmentation is None
                else rle.to_rle(segmentation, video.height, video.width)
            )
        except ValueError as error:
            raise DataError(f"{place}, frame {frame}: {error}") from error
    areas = row.get("areas") or [None if mask is None else rle.area(mask) for mask in masks]
    if any(area is not None and type(area) not in (int, float) for area in areas):
        raise DataError(f"{place}: areas must hold numbers and nulls")
    if any(area is not None and not 0 <= area <= sys.float_info.max for area in areas):
        raise DataError(f"{place}: areas must be finite and at least 0")
    return Track(
        id=_int(row, "id", place),
        label=labels[category],
        masks=tuple(masks),
        areas=tuple(areas),
        is_crowd=bool(row.get("iscrowd", 0)),
    )


def _rows(
    content: Mapping[str, Any], name: str, place: str, missing_ok: bool = False
) -> list[Mapping[str, Any]]:
    if missing_ok and content.get(name) is None:
        return []
    rows = _list(content, name, place)
    for row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{place}: {name} must hold objects, got {type(row).__name__}")
    return rows


def _list(row: Mapping[str, Any], name: str, place: str) -> list[Any]:
    if not isinstance(row.get(name), list):
        raise DataError(f"{place}: {name} must be a list, got {row.get(name)!r}")
    entries: list[Any] = row[name]
    return entries


def _int(row: Mapping[str, Any], name: str, place: str) -> int:
    number = row.get(name)
    if type(number) is not int:
        raise DataError(f"{place}: {name} must be an integer, got {number!r}")
    return number
