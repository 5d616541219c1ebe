"""Looks at the frames of a dataset before work is done for them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from defvis.data.errors import DataError
from defvis.data.pictures import check_depth, check_picture
from defvis.data.ytvis import Video

# Videos of which two frames are decoded if their values have more than 8 bits.
_DECODED = 100


def check_frames(videos: Sequence[Video], progress: bool = False) -> None:
    """Sees that every frame is there, and that the first and last of each video can be used.

    Folders are listed once and headers of pictures read, so that large datasets take seconds.

    Args:
        videos: Any number, also none.
        progress: Whether to show a progress bar.

    Raises:
        DataError: If files are missing, or a picture that was looked at is broken or has another
            size than its video; the message names video, frame and file.
    """
    folders = _Folders()
    missing: Counter[int] = Counter()
    first = ""
    for video in tqdm(videos, "looking for frames", disable=not progress):
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
    for number, video in enumerate(tqdm(videos, "looking at frames", disable=not progress)):
        for frame in sorted({0, video.length - 1}):
            try:
                check_picture(video.files[frame], video.height, video.width)
            except DataError as error:
                raise DataError(f"video {video.id}, frame {frame}: {error}") from error
        if number < _DECODED:
            try:
                check_depth(video.files[0], video.files[-1])
            except DataError as error:
                raise DataError(f"video {video.id}: {error}") from error


class _Folders:
    """The names in folders, listed when first asked for."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, bool] | str] = {}

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
        return "it is a folder" if names[name] else ""


def _list(folder: str) -> dict[str, bool] | str:
    """Names in a folder, and whether each is a folder itself; or why they cannot be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        return f"{error.strerror}: {folder}"
    except ValueError as error:  # Null bytes.
        return str(error)


def _stem(name: str) -> str:
    """What two names have in common that differ in capitals or extension."""
    return os.path.splitext(name)[0].casefold()
