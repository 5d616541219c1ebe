"""Reads every picture and every mask of a dataset, whatever is wrong with some of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from defvis.config import Config
from defvis.data.check import Folders
from defvis.data.dataset import Video, YouTubeVIS
from defvis.data.resize_crop import network_size
from defvis.decoding.errors import DataError
from defvis.decoding.pictures import check_depth, check_picture
from defvis.inspection.findings import Finding
from defvis.inspection.odd_objects import odd_objects

_UNREADABLE = "frames that cannot be read"
_FLAT = "frames of one colour"
_STILL = "frames that are the same as the one before"
_SAME_WITHIN = "videos of one split that share frames"
_SAME_ACROSS = "videos to train on that share frames with validation videos: the scores lie"
# Values up to here are one colour: JPEG does not keep it exactly.
_FLAT_RANGE = 4


@dataclass(frozen=True)
class Reading:
    """What was found in a video.

    Attributes:
        refused: What stops training.
        odd: What may be a mistake.
        digests: Of the pixels of each frame; None of one that cannot be read or has one colour.
    """

    refused: tuple[Finding, ...]
    odd: tuple[Finding, ...]
    digests: tuple[int | None, ...]


class Reader(Dataset[Reading]):
    """Reads a video when it is asked for; only one of its frames is in memory at a time.

    Args:
        data: A split.
        config: The run's numbers.
    """

    def __init__(self, data: YouTubeVIS, config: Config) -> None:
        self._data, self._config = data, config
        self._folders = Folders()  # One for all: thousands of videos may share a folder.

    def __len__(self) -> int:
        return len(self._data.videos)

    def __getitem__(self, index: int) -> Reading:
        video, model = self._data.videos[index], self._config.model
        refused, odd, digests = _frames(video, self._folders)
        size = network_size(video.height, video.width, self._config.data)
        names = self._data.category_names
        odd += odd_objects(video, names, model.num_slots, model.num_frames, size)
        return Reading(tuple(refused), tuple(odd), tuple(digests))


def readings(data: YouTubeVIS, config: Config) -> Iterator[Reading]:
    """Reads the videos in their order, in `config.data.workers` processes besides this one."""
    # Without a batch size, and with this, the loader gives what the dataset does.
    reader = Reader(data, config)
    yield from DataLoader(
        reader, batch_size=None, num_workers=config.data.workers, collate_fn=_itself
    )


def _itself(item: Any) -> Any:
    return item


class Repeats:
    """Finds frames with the same pixels. It keeps a number per frame, not the pixels."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[str, int, int]] = {}
        self._pairs: Counter[tuple[tuple[str, int], tuple[str, int]]] = Counter()
        self._example: dict[tuple[tuple[str, int], tuple[str, int]], str] = {}

    def add(self, split: str, video: int, digests: Sequence[int | None]) -> None:
        """Compares the frames of a video with those of all before.

        Args:
            split: "train" or "val".
            video: Its id.
            digests: As in `Reading`.
        """
        for frame, digest in enumerate(digests):
            if digest is None:
                continue
            first = self._first.setdefault(digest, (split, video, frame))
            if first[:2] != (split, video):
                pair = first[:2], (split, video)
                self._pairs[pair] += 1
                self._example.setdefault(pair, f"frames {first[2]} and {frame}")

    def findings(self) -> Iterator[Finding]:
        """A line for each two videos that share frames."""
        for pair, count in self._pairs.items():
            (split, video), (other_split, other) = pair
            yield Finding(
                _SAME_WITHIN if split == other_split else _SAME_ACROSS,
                f"{split} video {video} and {other_split} video {other}: {count} the same, "
                f"first {self._example[pair]}",
            )


def _frames(
    video: Video, folders: Folders
) -> tuple[list[Finding], list[Finding], list[int | None]]:
    """Decodes all frames: what is refused, what is odd, and the digests."""
    refused: list[Finding] = []
    odd: list[Finding] = []
    digests: list[int | None] = []
    flat: list[int] = []
    still: list[int] = []
    for frame in range(video.length):
        pixels = _read(video, frame, folders, refused)
        if pixels is not None and _is_flat(pixels):
            flat.append(frame)
            pixels = None
        digests.append(None if pixels is None else _digest(pixels))
        if frame and digests[-1] is not None and digests[-1] == digests[-2]:
            still.append(frame)
    if not refused:
        try:
            check_depth(*(video.files[i] for i in sorted({0, video.length // 2, video.length - 1})))
        except DataError as error:
            refused.append(Finding(_UNREADABLE, f"video {video.id}: {error}"))
    for kind, frames in ((_FLAT, flat), (_STILL, still)):
        if frames:
            text = f"{len(frames)} of {video.length}, the first is frame {frames[0]}"
            odd.append(Finding(kind, f"video {video.id}: {text}"))
    return refused, odd, digests


def _read(
    video: Video, frame: int, folders: Folders, refused: list[Finding]
) -> NDArray[np.uint8] | None:
    """The pixels of a frame; or None, and why in `refused`."""
    file = video.files[frame]
    try:
        lacking = folders.lacks(file)
        if lacking:
            raise DataError(f"cannot read {file}: {lacking}")
        check_picture(file, video.height, video.width)
    except DataError as error:
        refused.append(Finding(_UNREADABLE, f"video {video.id}, frame {frame}: {error}"))
        return None
    try:
        return video.frame(frame)
    except DataError as error:  # It names the frame.
        refused.append(Finding(_UNREADABLE, str(error)))
        return None


def _digest(pixels: NDArray[np.uint8]) -> int:
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=8)
    digest.update(repr(pixels.shape).encode())
    return int.from_bytes(digest.digest(), "big")


def _is_flat(pixels: NDArray[np.uint8]) -> bool:
    # Few pixels show that most frames are not.
    return all(
        np.ptp(some.reshape(-1, 3), axis=0).max() <= _FLAT_RANGE
        for some in (pixels[::16, ::16], pixels)
    )
