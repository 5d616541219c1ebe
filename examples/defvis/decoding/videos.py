"""Decodes video files with PyAV, as players show them: the one place that does."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defvis.decoding.errors import DataError
from defvis.decoding.video_frames import HLG, shown_pixels, shown_size, square_width
from defvis.progress import followed

# A file may name others, and addresses, which are not opened.
_OPTIONS = {"protocol_whitelist": "file"}
_PLAYLISTS = ("concat", "dash", "hls", "sdp")


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
                frames of several sizes, or such that cannot be shown faithfully.
        """
        if importlib.util.find_spec("av") is None:
            raise DataError(f"{path}: video files need PyAV: pip install av")
        self._path, self._every = path, every
        self.length, self.rate = 0, 0.0
        self.notes: tuple[str, ...] = ()
        sizes = set()
        for frame in followed(self._decode(), f"counting frames of {path.name}", "frame"):
            with self._named_errors():
                sizes.add(shown_size(frame, self._aspect))
            self.length += 1
        if not sizes:
            raise DataError(f"{path} holds no frames")
        if len(sizes) > 1:
            raise DataError(f"{path}: frames differ in size: {sorted(sizes)}")
        ((self.height, self.width),) = sizes
        self._kept: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=max(1, keep))
        self._coming: Iterator[tuple[int, Any]] = iter(())

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Decodes one frame to RGB [H, W, 3]; a broken one is a DataError."""
        for number, pixels in self._kept:
            if number == index:
                return pixels
        if not self._kept or index < self._kept[-1][0]:
            self._kept.clear()
            self._coming = enumerate(self._decode())
        for number, frame in self._coming:
            if number == index:
                with self._named_errors():
                    pixels = shown_pixels(frame, self._aspect)
                self._kept.append((number, pixels))
                return pixels
        self._kept.clear()  # Decoding begins anew.
        raise DataError(f"{self._path} has no frame {index} of {self.length}")

    def _decode(self) -> Iterator[Any]:
        """The frames that are taken, in PyAV's form."""
        import av

        with (
            self._named_errors(),
            # Without "file:", FFmpeg takes what is before a colon in the name for a protocol.
            av.open(f"file:{self._path}", options=_OPTIONS, metadata_errors="replace") as container,
        ):
            if container.format.name in _PLAYLISTS:
                raise DataError("it is a playlist; give the video itself")
            stream = _longest_stream(container)
            stream.thread_type = "AUTO"
            self.rate = float(stream.average_rate or 0) / self._every
            self._aspect = Fraction(stream.sample_aspect_ratio or 1)
            damaged, number = 0, -1
            for number, frame in enumerate(container.decode(stream)):
                damaged += bool(frame.is_corrupt)
                if number % self._every == 0:
                    yield frame
            self.notes = tuple(_notes(container, stream, self._aspect, number + 1, damaged))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Names the file in errors, and takes those of PyAV for errors of data."""
        import av

        try:
            yield
        except av.FFmpegError as error:
            message = f"cannot read {self._path} as video: {error.strerror}"
            if self._path.suffix.lower() == ".webp":
                message += "; FFmpeg may not read animated WebP: save its frames as PNG"
            raise DataError(message) from error
        except (ValueError, MemoryError, LookupError) as error:  # PyAV's own, of damaged files.
            raise DataError(f"cannot read {self._path} as video: {error}") from error


def _longest_stream(container: Any) -> Any:
    """The video stream of most frames, the first of equals; covers and thumbnails are none."""
    import av

    covers = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [each for each in container.streams.video if not each.disposition & covers]
    if not streams:
        raise DataError(
            "it has no video stream" + ", only a cover picture" * bool(container.streams.video)
        )
    stream = max(streams, key=lambda each: each.frames)  # An animated AVIF has a still, too.
    if stream.metadata.get("alpha_mode") == "1":
        raise DataError("its transparency cannot be decoded; save its frames as PNG")
    return stream


def _notes(
    container: Any, stream: Any, aspect: Fraction, frames: int, damaged: int
) -> Iterator[str]:
    """What a user should know of a stream of which all frames were decoded."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if square_width(width, aspect) != width:
        yield (
            f"pixels are not square ({aspect.numerator}:{aspect.denominator}): frames of {width} x "
            f"{height} pixels are read as {square_width(width, aspect)} x {height}"
        )
    if stream.codec_context.color_trc == HLG:
        yield "brightness is HDR (HLG): colours are paler than on a screen for HDR"
    promised = _promised_frames(stream)
    if frames < promised:
        yield f"the file promises {promised} frames, {frames} could be read"
    if damaged:
        yield f"{damaged} of {frames} frames are damaged"
    others = len(container.streams.video) - 1
    if others:
        yield f"video streams and covers that are not read: {others}"


def _promised_frames(stream: Any) -> int:
    """The least number of frames that a whole file has; 0 if it does not say."""
    if stream.frames:
        return int(stream.frames)
    # Matroska states a duration, and a rate from which single frames may differ.
    duration = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if not duration or not stream.average_rate:
        return 0
    hours, minutes, seconds = map(float, duration.groups())
    return int(0.95 * (3600 * hours + 60 * minutes + seconds) * stream.average_rate)
