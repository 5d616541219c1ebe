"""A dataset of videos with their objects, wherever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from defvis.data.rle import RLE
from defvis.decoding.errors import DataError
from defvis.decoding.pictures import read_picture


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

    @property
    def present(self) -> dict[int, RLE]:
        """The masks by frame, of the frames in which the object is present."""
        return {frame: mask for frame, mask in enumerate(self.masks) if mask is not None}


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

    @property
    def objects(self) -> list[Track]:
        """The tracks without regions of many objects."""
        return [track for track in self.tracks if not track.is_crowd]

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
        category_names: The name of each class index; its id where the file has none.
        notes: Sentences on what was read otherwise than it stands in the file.
    """

    videos: tuple[Video, ...]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

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
        raise DataError(
            f"{len(data.videos)} videos are too few to hold out every {every}th; "
            "add validation videos in a folder val"
        )
    return replace(data, videos=train), replace(data, videos=val)
