"""Frames to run a model on: a folder of pictures, or a video file (needs PyAV)."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defvis.data.errors import DataError
from defvis.data.pictures import picture_size
from defvis.data.ytvis import Frames, Video

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def open_source(path: Path, every: int = 1, keep: int = 72) -> Frames:
    """Opens a folder of pictures, in order of their names, or a video file.

    Args:
        path: Folder or file.
        every: Takes each n-th frame (YouTube-VIS annotates every fifth of a 30 Hz video).
        keep: Decoded frames of a video file kept in memory, for clips that overlap.

    Raises:
        DataError: If there is nothing to read, or it cannot be read.
        ValueError: If `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if path.is_dir():
        return _open_folder(path, every)
    if not path.is_file():
        raise DataError(f"there is no file or folder {path}")
    return VideoFile(path, every, keep)


def _open_folder(path: Path, every: int) -> Video:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)[::every]
    if not files:
        raise DataError(f"{path} holds no pictures ({', '.join(sorted(_PICTURES))})")
    height, width = picture_size(files[0])
    return Video(1, width, height, tuple(files), ())


class VideoFile:
    """A video file, decoded frame by frame on request; fastest if frames are read in order.

    Attributes:
        id: 1.
        width: Pixels.
        height: Pixels.
        length: Number of frames taken.
        rate: Frames taken per second; 0 if the file does not say.
    """

    id = 1

    def __init__(self, path: Path, every: int, keep: int) -> None:
        if importlib.util.find_spec("av") is None:
            raise DataError(f"{path}: video files need PyAV: pip install av")
        self._path, self._every = path, every
        self.length, self.rate = 0, 0.0
        sizes = set()
        for frame in self._decode():  # Containers often state a wrong number of frames, or none.
            sizes.add((frame.height, frame.width))
            self.length += 1
        if not sizes:
            raise DataError(f"{path} holds no frames")
        if len(sizes) > 1:
            raise DataError(f"{path}: frames differ in size: {sorted(sizes)}")
        ((self.height, self.width),) = sizes
        self._kept: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=max(1, keep))
        self._coming: Iterator[tuple[int, Any]] = iter(())

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Decodes one frame to RGB [H, W, 3]."""
        for number, pixels in self._kept:
            if number == index:
                return pixels
        if not self._kept or index < self._kept[-1][0]:
            self._kept.clear()
            self._coming = enumerate(self._decode())
        for number, frame in self._coming:
            pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            self._kept.append((number, pixels))
            if number == index:
                return pixels
        raise DataError(f"{self._path} has no frame {index} of {self.length}")

    def _decode(self) -> Iterator[Any]:
        """The frames that are taken, in PyAV's form."""
        import av

        try:
            with av.open(str(self._path)) as container:
                if not container.streams.video:
                    raise DataError(f"{self._path} has no video stream")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                rate: Any = stream.average_rate
                self.rate = float(rate or 0) / self._every
                for number, frame in enumerate(container.decode(stream)):
                    if number % self._every == 0:
                        yield frame
        except av.FFmpegError as error:
            raise DataError(f"cannot read {self._path} as video: {error}") from error
