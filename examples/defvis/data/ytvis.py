"""Reads and checks a YouTube-VIS dataset (2019, 2021): a JSON file and folders of frames."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from defvis.data import rle
from defvis.data.dataset import Track, Video, YouTubeVIS
from defvis.data.foreign import name_format
from defvis.data.polygons import count_slivers
from defvis.data.read_json import read_json
from defvis.data.values import integer, shown
from defvis.decoding.errors import DataError
from defvis.progress import followed

# The runs of a mask this large still fit into the 30 bits that `rle` reads.
_MAX_PIXELS = 2**29 - 1
# Of annotation files, in the order in which they are looked for.
_NAMES = ("instances.json", "annotations.json")


def find_files(root: Path) -> tuple[Path, Path]:
    """Finds annotation file and frame folder of a split.

    Args:
        root: Folder with `instances.json`, `annotations.json` (as the 2021 download names it) or
            one JSON file of any name, and `JPEGImages/`; or the annotation file itself; its
            frames may be missing.

    Raises:
        DataError: If either is missing.
    """
    if root.is_file():
        return root, root.parent / "JPEGImages"
    file = annotation_file(root)
    if file is None:
        if not root.is_dir():
            raise DataError(f"there is no file or folder {root}")
        raise DataError(f"{root} holds none of {', '.join(_NAMES)}; found {listed(root)}")
    frames = root / "JPEGImages"
    if not frames.is_dir():
        raise DataError(f"{root} has no folder JPEGImages; found {listed(root)}")
    return file, frames


def annotation_file(folder: Path) -> Path | None:
    """The annotation file of a split's folder; None if there is none.

    Raises:
        DataError: If there are several to choose from.
    """
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    if found:
        return found[0]
    # Folders of YouTube-VOS, whose frames are the same, hold a meta.json of its own.
    others = sorted(file for file in folder.glob("*.json") if file.name != "meta.json")
    if len(others) > 1:
        raise DataError(
            f"{folder} holds none of {', '.join(_NAMES)}, and more than one other JSON file: "
            f"{', '.join(file.name for file in others[:5])}; rename the one of the annotations"
        )
    return others[0] if others else None


def listed(folder: Path) -> str:
    """Names the first folders and JSON files in a folder."""
    names = sorted(
        entry.name + "/" * entry.is_dir()
        for entry in folder.iterdir()
        if entry.is_dir() or entry.suffix == ".json"
    )
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Stops Python's search for cycles: with millions of new objects it takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collections()
def load(annotation_file: Path, frame_folder: Path, progress: bool = False) -> YouTubeVIS:
    """Reads a dataset and checks everything but the pixels.

    An entry that is null or empty, or a field that is missing, is an absent one. What is wrong is
    refused.

    Args:
        annotation_file: JSON with videos, categories and (except in test sets) annotations.
        frame_folder: What the videos' `file_names` are relative to. If the first frame does not
            lie there, but below one of the two folders above, that is taken and noted.
        progress: Shows progress.

    Raises:
        DataError: With file, video and annotation, for broken JSON, missing fields, values of
            another type, unknown or repeated ids, lists of another length than the video, and
            masks of another size.
    """
    where = str(annotation_file)
    content = read_json(annotation_file, dict, DataError)
    rows = _rows(content, "videos", where)
    if not rows:
        raise DataError(f"{where}: videos is empty")
    if "file_names" not in rows[0] and name_format(content):
        raise DataError(f"{where}: {name_format(content)}")
    notes: Counter[str] = Counter()
    labels, names = _categories(_rows(content, "categories", where), where, notes)

    videos: dict[int, Video] = {}
    for index, row in enumerate(rows):
        video_id = integer(row, "id", f"{where}: videos[{index}]", DataError)
        if video_id in videos:
            raise DataError(f"{where}: video id {video_id} repeats")
        place = f"{where}: video {video_id}"
        videos[video_id] = _video(row, video_id, frame_folder, place, notes)
    videos = _moved(videos, frame_folder, notes)

    tracks: dict[int, list[Track]] = {video_id: [] for video_id in videos}
    seen: set[int] = set()
    rows = _rows(content, "annotations", where, missing_ok=True)
    for index, row in enumerate(followed(rows, "annotations", "annotation", disable=not progress)):
        annotation_id = integer(row, "id", f"{where}: annotations[{index}]", DataError)
        place = f"{where}: annotation {annotation_id}"
        if annotation_id in seen:
            raise DataError(f"{place}: its id repeats")
        seen.add(annotation_id)
        video_id = integer(row, "video_id", place, DataError)
        if video_id not in videos:
            raise DataError(f"{place}: there is no video {video_id}")
        place = f"{where}: video {video_id}, annotation {annotation_id}"
        tracks[video_id].append(_track(row, annotation_id, videos[video_id], labels, place, notes))
    return YouTubeVIS(
        videos=tuple(replace(video, tracks=tuple(tracks[video.id])) for video in videos.values()),
        category_ids=tuple(labels),
        category_names=names,
        notes=tuple(
            f"{where}: {note}" if count == 1 else f"{where}: {note} ({count} times)"
            for note, count in notes.items()
        ),
    )


def _categories(
    rows: list[Mapping[str, Any]], where: str, notes: Counter[str]
) -> tuple[dict[int, int], tuple[str, ...]]:
    """The class index of each category id, and the names in order of the ids."""
    if not rows:
        raise DataError(f"{where}: categories is empty, at least one is needed")
    named: dict[int, str] = {}
    for index, row in enumerate(rows):
        category_id = integer(row, "id", f"{where}: categories[{index}]", DataError)
        if category_id in named:
            raise DataError(f"{where}: category ids repeat: {category_id}")
        named[category_id] = _category_name(row, category_id, f"{where}: category {category_id}")
    for name, count in Counter(named.values()).items():
        if count > 1:
            notes[f"{count} categories have the name {name!r} and are kept apart"] = 1
    ids = sorted(named)
    return {category_id: label for label, category_id in enumerate(ids)}, tuple(
        named[category_id] for category_id in ids
    )


def _category_name(row: Mapping[str, Any], category_id: int, place: str) -> str:
    name = row.get("name")
    if name is None or name == "":
        return str(category_id)
    if type(name) in (int, float):
        return str(name)
    if not _is_text(name):
        raise DataError(f"{place}: name must be text, got {shown(name)}")
    return name


def _video(
    row: Mapping[str, Any], video_id: int, folder: Path, place: str, notes: Counter[str]
) -> Video:
    names = _list(row, "file_names", place)
    if not names:
        raise DataError(f"{place}: file_names is empty")
    if row.get("length") is not None and integer(row, "length", place, DataError) != len(names):
        raise DataError(f"{place}: length is {row['length']}, but file_names has {len(names)}")
    width, height = (integer(row, name, place, DataError) for name in ("width", "height"))
    if width < 1 or height < 1:
        raise DataError(f"{place}: width and height must be at least 1, got {width} x {height}")
    if width * height > _MAX_PIXELS:
        raise DataError(
            f"{place}: width x height must be at most {_MAX_PIXELS} pixels, got {width} x {height}"
        )
    for name in names:
        if not _is_text(name) or not name or "\0" in name:
            raise DataError(f"{place}: file_names must hold names of files, got {shown(name)}")
    return Video(
        id=video_id,
        width=width,
        height=height,
        files=tuple(_file(folder, name, notes) for name in names),
        tracks=(),
    )


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether it is text without halves of characters, which cannot be printed or be a name."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _file(folder: Path, name: str, notes: Counter[str]) -> Path:
    path = folder / name
    if "\\" in name and not os.path.exists(path):
        notes["a backslash in file_names was read as a slash"] += 1
        return folder / name.replace("\\", "/")
    return path


def _moved(videos: dict[int, Video], folder: Path, notes: Counter[str]) -> dict[int, Video]:
    """The videos with their files where the first one lies: in the folder, or one of two above."""
    first = next(iter(videos.values())).files[0]
    if os.path.exists(first) or not first.is_relative_to(folder):
        return videos
    for other in list(folder.parents)[:2]:
        if os.path.exists(other / first.relative_to(folder)):
            notes[f"file_names lie below {other}"] = 1
            return {
                video.id: replace(
                    video,
                    files=tuple(
                        other / file.relative_to(folder) if file.is_relative_to(folder) else file
                        for file in video.files
                    ),
                )
                for video in videos.values()
            }
    return videos


def _track(
    row: Mapping[str, Any],
    annotation_id: int,
    video: Video,
    labels: Mapping[int, int],
    place: str,
    notes: Counter[str],
) -> Track:
    category = integer(row, "category_id", place, DataError)
    if category not in labels:
        raise DataError(f"{place}: there is no category {category}")
    if "segmentations" not in row and "segmentation" in row:
        raise DataError(
            f"{place}: it has a segmentation, as COCO's single images have; segmentations, one "
            "for each frame of the video, are needed"
        )
    for name in ("segmentations", "bboxes", "areas"):
        if name == "segmentations" or row.get(name) not in (None, []):
            entries = _list(row, name, place)
            if len(entries) != video.length:
                raise DataError(
                    f"{place}: {name} must have one entry per frame, {video.length}, "
                    f"got {len(entries)}"
                )
    segmentations = row["segmentations"]
    try:
        masks, counted = rle.to_rles(segmentations, video.height, video.width, place)
    except ValueError as error:
        raise DataError(str(error)) from error
    slivers = sum(map(count_slivers, segmentations))
    if slivers:
        notes["a polygon with fewer than three corners was dropped"] += slivers
    thin = sum(
        isinstance(entry, list) and frame not in masks and count_slivers(entry) < len(entry)
        for frame, entry in enumerate(segmentations)
    )
    if thin:
        notes["a mask whose polygons hold no pixel was taken as absent (are they in pixels?)"] += (
            thin
        )
    return Track(
        id=annotation_id,
        label=labels[category],
        masks=tuple(map(masks.get, range(video.length))),
        areas=_areas(row.get("areas") or (), counted, video, place, notes),
        is_crowd=_is_crowd(row.get("iscrowd"), place),
    )


def _areas(
    stated: Iterable[Any],
    counted: Mapping[int, int],
    video: Video,
    place: str,
    notes: Counter[str],
) -> tuple[float | None, ...]:
    """What the file says, else what the masks have."""
    areas: list[float | None] = [counted.get(frame) for frame in range(video.length)]
    pixels = video.width * video.height
    for frame, area in enumerate(stated):
        if area is None:
            continue
        if type(area) not in (int, float):
            raise DataError(
                f"{place}, frame {frame}: areas must hold numbers and nulls, got {shown(area)}"
            )
        if not area >= 0:
            raise DataError(f"{place}, frame {frame}: areas must be at least 0, got {shown(area)}")
        if area > pixels:  # Of frames before they were made smaller, perhaps.
            notes["an area larger than the frame was counted from the mask instead"] += 1
        else:
            areas[frame] = area
    return tuple(areas)


def _is_crowd(value: Any, place: str) -> bool:
    if value is None:
        return False
    if type(value) not in (int, bool, float) or value not in (0, 1):
        raise DataError(f"{place}: iscrowd must be 0 or 1, got {shown(value)}")
    return bool(value)


def _rows(
    content: Mapping[str, Any], name: str, where: str, missing_ok: bool = False
) -> list[Mapping[str, Any]]:
    if missing_ok and content.get(name) is None:
        return []
    if not isinstance(content.get(name), list) and name_format(content):
        raise DataError(f"{where}: {name_format(content)}")
    rows = _list(content, name, where)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{where}: {name} must hold objects, got {shown(row)} at {index}")
    return rows


def _list(row: Mapping[str, Any], name: str, place: str) -> list[Any]:
    if name not in row:
        raise DataError(f"{place}: {name} is missing")
    if not isinstance(row[name], list):
        raise DataError(f"{place}: {name} must be a list, got {shown(row[name])}")
    entries: list[Any] = row[name]
    return entries
