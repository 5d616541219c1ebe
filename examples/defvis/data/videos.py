"""Decodes video files with PyAV, as players show them: the one place that does.

Frames are turned and mirrored as the file says, non-square pixels are made square, transparent
pixels lie on white, more than 8 bits are scaled to 8, and colours are converted as the file states
them (BT.601 if it does not). High dynamic range is refused: how to show it is a matter of taste.
"""

from __future__ import annotations

import importlib.util
import re
import struct
import sys
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from defvis.data.errors import DataError
from defvis.data.pictures import check_brightness, on_white, turned

# Transfer functions whose values a screen does not show as they are (ITU-T H.273).
_NOT_SHOWN = {8: "linear", 9: "logarithmic", 10: "logarithmic", 16: "HDR (PQ)", 17: "SMPTE 428",
              18: "HDR (HLG)"}  # fmt: skip
# EXIF's name for each display matrix: where right and down of the stored frame point.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip
# Pixels that differ less from squares come from rounding.
_SQUARE = 0.01


class VideoFile:
    """A video file, decoded frame by frame on request; fastest if frames are read in order.

    Attributes:
        id: 1.
        width: Pixels, as shown.
        height: Pixels, as shown.
        length: Number of frames taken.
        rate: Frames taken per second; 0 if the file does not say.
        notes: What a user should know of the file, each in a sentence.
    """

    id = 1

    def __init__(self, path: Path, every: int, keep: int) -> None:
        """Decodes the file once, without keeping it: containers often state a wrong length.

        Args:
            path: The file.
            every: Takes each n-th frame.
            keep: Decoded frames kept in memory, for clips that overlap.

        Raises:
            DataError: If PyAV is missing, or the file cannot be read to its end, has no frames,
                frames of several sizes, or none that can be shown faithfully.
        """
        if importlib.util.find_spec("av") is None:
            raise DataError(f"{path}: video files need PyAV: pip install av")
        self._path, self._every = path, every
        self.length, self.rate = 0, 0.0
        self.notes: tuple[str, ...] = ()
        sizes = set()
        for frame in tqdm(
            self._decode(), f"counting frames of {path.name}", delay=1, leave=False,
            disable=not sys.stderr.isatty(),
        ):  # fmt: skip
            sizes.add(self._shown_size(frame))
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
            pixels = self._shown(frame)
            self._kept.append((number, pixels))
            if number == index:
                return pixels
        raise DataError(f"{self._path} has no frame {index} of {self.length}")

    def _decode(self) -> Iterator[Any]:
        """The frames that are taken, in PyAV's form."""
        import av

        try:
            with av.open(str(self._path)) as container:
                stream = self._stream(container)
                stream.thread_type = "AUTO"
                self.rate = float(stream.average_rate or 0) / self._every
                self._aspect = Fraction(stream.sample_aspect_ratio or 1)
                damaged, number = 0, -1
                for number, frame in enumerate(container.decode(stream)):
                    damaged += bool(frame.is_corrupt)
                    if number % self._every == 0:
                        yield frame
                self.notes = tuple(self._say(container, stream, number + 1, damaged))
        except av.FFmpegError as error:
            message = f"cannot read {self._path} as video: {error.strerror}"
            if self._path.suffix.lower() == ".webp":
                message += "; FFmpeg may not read animated WebP: save its frames as PNG"
            raise DataError(message) from error

    def _stream(self, container: Any) -> Any:
        """The longest video stream, the first of equals; covers and thumbnails are none."""
        import av

        covers = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        streams = [each for each in container.streams.video if not each.disposition & covers]
        if not streams:
            cover = ", only a cover picture" if container.streams.video else ""
            raise DataError(f"{self._path} has no video stream{cover}")
        stream = max(streams, key=lambda each: each.frames)  # An animated AVIF has a still, too.
        if stream.metadata.get("alpha_mode") == "1":
            raise DataError(
                f"{self._path}: its transparency cannot be decoded; save its frames as PNG"
            )
        return stream

    def _say(self, container: Any, stream: Any, frames: int, damaged: int) -> Iterator[str]:
        """What a user should know, after all frames were decoded."""
        if abs(self._aspect - 1) > _SQUARE:
            width, height = stream.codec_context.width, stream.codec_context.height
            yield (
                f"pixels are not square ({self._aspect.numerator}:{self._aspect.denominator}): "
                f"frames of {width} x {height} pixels are read as "
                f"{self._square_width(width)} x {height}"
            )
        promised = _promised_frames(stream)
        if frames < promised:
            yield f"the file promises {promised} frames, {frames} could be read"
        if damaged:
            yield f"{damaged} of {frames} frames are damaged"
        others = len(container.streams.video) - 1
        if others:
            yield f"video streams and covers that are not read: {others}"

    def _square_width(self, width: int) -> int:
        """The width of stored frames after their pixels were made square."""
        if abs(self._aspect - 1) <= _SQUARE:
            return width
        return max(1, round(width * self._aspect))

    def _shown_size(self, frame: Any) -> tuple[int, int]:
        """Height and width as shown, of a frame that can be shown."""
        if frame.color_trc in _NOT_SHOWN:
            raise DataError(
                f"{self._path} cannot be shown faithfully: its brightness is "
                f"{_NOT_SHOWN[frame.color_trc]}; convert it to standard dynamic range (tone "
                "mapping) first"
            )
        size = frame.height, self._square_width(frame.width)
        return size[::-1] if self._orientation(frame) >= 5 else size

    def _orientation(self, frame: Any) -> int:
        """How a frame is turned to be shown, as EXIF numbers it."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return 1
        entries = struct.unpack("=9i", bytes(matrix))
        turn = [entries[index] for index in (0, 1, 3, 4)]
        largest = max(map(abs, turn))
        if largest == 0:
            return 1
        # Entries may also stretch: the aspect of the pixels says by how much.
        signs = tuple(0 if abs(x) < 0.01 * largest else (1 if x > 0 else -1) for x in turn)
        if signs not in _ORIENTATIONS:
            raise DataError(f"{self._path} is shown turned by no multiple of 90 degrees")
        return _ORIENTATIONS[signs]

    def _shown(self, frame: Any) -> NDArray[np.uint8]:
        """RGB [H, W, 3]."""
        alpha = frame.format.name == "pal8" or any(
            part.is_alpha for part in frame.format.components
        )
        pixels = np.asarray(
            frame.to_ndarray(
                format="rgba" if alpha else "rgb24", width=self._square_width(frame.width)
            ),
            dtype=np.uint8,
        )
        if any(part.bits == 16 for part in frame.format.components):
            check_brightness(self._path, pixels)
        return turned(on_white(pixels) if alpha else pixels, self._orientation(frame))


def _promised_frames(stream: Any) -> int:
    """The least number of frames that a whole file has; 0 if it does not say."""
    if stream.frames:
        return int(stream.frames)
    # Matroska states a duration, and a rate from which single frames may differ.
    duration = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if not duration or not stream.average_rate:
        return 0
    hours, minutes, seconds = map(float, duration.groups())
    return int(0.95 * (3600 * hours + 60 * minutes + seconds) * stream.average_rate)
