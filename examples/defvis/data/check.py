"""Looks at the frames of a dataset before work is done for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from defvis.data.dataset import Video
from defvis.decoding.errors import DataError
from defvis.decoding.pictures import check_depth, check_picture
from defvis.progress import followed

# Videos of which a frame is decoded, and three if their values have more than 8 bits.
_DECODED = 100


def check_frames(videos: Sequence[Video], progress: bool = False) -> None:
    """Sees that every frame is there and not empty, and looks at some.

    Folders are listed once. The headers of the first, middle and last frame of each video are read,
    and the first frame of some videos is decoded, so that large datasets take seconds.

    Args:
        videos: Any number, also none.
        progress: Shows progress.

    Raises:
        DataError: If files are missing, or a picture that was looked at is broken or has another
            size than its video; the message names video, frame and file.
    """
    folders = Folders()
    missing: Counter[int] = Counter()
    first = ""
    quiet = not progress
    for video in followed(videos, "looking for frames", "video", disable=quiet):
        for frame, file in enumerate(video.files):
            reason = folders.lacks(file)
            if reason:
                first = first or f"video {video.id}, frame {frame}: cannot read {file}: {reason}"
                missing[video.id] += 1
    if missing:
        frames = missing.total()
        if frames == 1:
            raise DataError(f"a frame is missing: {first}")
        of = f"{len(missing)} videos" if len(missing) > 1 else "a video"
        raise DataError(f"{frames} frames of {of} are missing, the first: {first}")
    for number, video in enumerate(followed(videos, "looking at frames", "video", disable=quiet)):
        some = sorted({0, video.length // 2, video.length - 1})
        for frame in some:
            try:
                check_picture(video.files[frame], video.height, video.width)
            except DataError as error:
                raise DataError(f"video {video.id}, frame {frame}: {error}") from error
        if number < _DECODED:
            video.frame(0)
            try:
                check_depth(*(video.files[frame] for frame in some))
            except DataError as error:
                raise DataError(f"video {video.id}: {error}") from error


class Folders:
    """The names in folders, listed when first asked for."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str] | str] = {}

    def lacks(self, file: Path) -> str:
        """Why there is no such file; empty if there is one."""
        folder, name = os.path.split(file)
        if folder not in self._listed:
            self._listed[folder] = _list(folder)
        names = self._listed[folder]
        if isinstance(names, str):
            return names
        if name not in names:
            similar = [other for other in names if _stem(other) == _stem(name)]
            return f"there is only {similar[0]}" if similar else "no such file"
        return names[name]


def _list(folder: str) -> dict[str, str] | str:
    """Names in a folder, and why each is no frame, "" if it may be one; or why there is no list."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: _no_frame(entry) for entry in entries}
    except OSError as error:
        return f"{error.strerror}: {folder}"
    except ValueError as error:  # Null bytes.
        return str(error)


def _no_frame(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "it is a folder"
        return "" if entry.stat().st_size else "the file is empty"
    except OSError as error:  # A link to nowhere.
        return str(error.strerror)


def _stem(name: str) -> str:
    """What two names have in common that differ in capitals or extension."""
    return os.path.splitext(name)[0].casefold()
