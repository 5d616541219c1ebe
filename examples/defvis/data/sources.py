"""Frames to run a model on: a folder of pictures, one picture, or a video file (needs PyAV)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from defvis.data.dataset import Video
from defvis.decoding.errors import DataError
from defvis.decoding.pictures import (
    SUFFIXES,
    SeveralFrames,
    check_depth,
    check_picture,
    picture_size,
)
from defvis.decoding.videos import VideoFile
from defvis.progress import followed

# Pictures that cannot be read here: a folder of them is not the folder of its other files.
_UNREAD = frozenset((
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".orf", ".rw2", ".raw", ".svg", ".psd", ".dcm", ".npy", ".npz",
))  # fmt: skip
_FILMS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".ts", ".mpg", ".mpeg", ".wmv")
_NAMED = 3


@dataclass(frozen=True)
class PictureFolder(Video):
    """Pictures in the natural order of their names: frame2 before frame10.

    Attributes:
        notes: What was passed over in the folder, each in a sentence.
    """

    notes: tuple[str, ...] = ()


def open_source(path: Path, every: int = 1, keep: int = 72) -> PictureFolder | VideoFile:
    """Opens a folder of pictures, in the natural order of their names, or a file.

    Args:
        path: Folder, picture or video.
        every: Takes each n-th frame (YouTube-VIS annotates every fifth of a 30 Hz video).
        keep: Decoded frames of a video file kept in memory, for clips that overlap.

    Raises:
        DataError: If there is nothing to read, it cannot be read, frames differ in size, or the
            order of the pictures is not certain.
        ValueError: If `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if path.is_dir():
        return _open_folder(path, every)
    if not path.is_file():
        raise DataError(_no_file(path))
    if path.suffix.lower() in SUFFIXES:
        try:
            return _open_pictures([path], ())
        except SeveralFrames:  # An animation, which is a video.
            if path.suffix.lower() in (".tif", ".tiff"):
                raise
    return VideoFile(path, every, keep)


def natural_key(name: str) -> tuple[str | int, ...]:
    """Sorts names by the numbers in them, as file managers do: frame2 before frame10."""
    parts = re.split(r"(\d+)", name.casefold())
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def _no_file(path: Path) -> str:
    if path.exists():
        return f"{path} is neither a folder nor a file"
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        return f"there is no file or folder {path}: download the video, addresses are not opened"
    if any(sign in path.name for sign in "*?%"):
        return f"there is no file or folder {path}: give the folder, patterns are not expanded"
    return f"there is no file or folder {path}"


def _open_folder(path: Path, every: int) -> PictureFolder:
    pictures, unread, folders, others = _sort_out(path)
    if not pictures:
        message = f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))})"
        if unread:
            message += f"; save {_some(unread)} as one of these"
        elif films := [name for name in others if os.path.splitext(name)[1].lower() in _FILMS]:
            message += f"; give a video itself: {_some(films)}"
        elif folders:
            message += f" but folders; give one of them: {_some(folders)}"
        raise DataError(message)
    names = _in_order(path, pictures)
    notes = []
    if unread:
        notes.append(f"pictures of a kind that is not read are left out: {_some(unread)}")
    if folders + others:
        notes.append(f"passed over, as they are no pictures: {_some(sorted(folders + others))}")
    return _open_pictures([path / name for name in names[::every]], tuple(notes))


def _sort_out(path: Path) -> tuple[list[str], list[str], list[str], list[str]]:
    """Names of pictures, of pictures that are not read, of folders and of everything else."""
    pictures: list[str] = []
    unread: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            # A name with a dot in front is hidden, such as those that macOS writes for itself.
            hidden = entry.name.startswith((".", "@"))
            if entry.is_dir():
                (others if hidden else folders).append(entry.name)
            elif hidden or not (entry.is_file() or entry.is_symlink()):
                others.append(entry.name)
            elif suffix in SUFFIXES:
                pictures.append(entry.name)
            else:
                (unread if suffix in _UNREAD else others).append(entry.name)
    return pictures, sorted(unread), sorted(folders), others


def _in_order(path: Path, pictures: Sequence[str]) -> list[str]:
    """Names in natural order, which must be certain."""
    keys = {name: natural_key(os.path.splitext(name)[0]) for name in pictures}
    ((key, count),) = Counter(keys.values()).most_common(1)
    if count > 1:
        same = sorted(name for name in pictures if keys[name] == key)
        raise DataError(f"{path}: one frame, or two? Keep one of {_some(same)}")
    return sorted(pictures, key=lambda name: keys[name])


def _some(names: Sequence[str]) -> str:
    """The number of names and the first of them."""
    shown = ", ".join(names[:_NAMED]).encode(errors="backslashreplace").decode()
    return shown if len(names) <= _NAMED else f"{shown}, ... ({len(names)} in all)"


def _open_pictures(files: Sequence[Path], notes: tuple[str, ...]) -> PictureFolder:
    """Looks at the headers of all: a picture of another size would be found late."""
    height, width = picture_size(files[0])
    for file in followed(files, "looking at pictures", "picture"):
        check_picture(file, height, width)
    check_depth(files[0], files[len(files) // 2], files[-1])
    return PictureFolder(1, width, height, tuple(files), (), notes)
