"""Overlay pictures: masks, boxes and identities on the frames; as PNG, animated WebP, video."""

from __future__ import annotations

import colorsys
import contextlib
import itertools
import math
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from defvis.data import rle
from defvis.data.dataset import Frames
from defvis.data.rle import RLE
from defvis.evaluation.fonts import readable
from defvis.evaluation.whole_file import whole_file
from defvis.progress import followed

# Milliseconds per frame of the animations (5 frames a second, YouTube-VIS's own rate is 6).
_DURATION = 200
# Height of the text in pixels; characters at its end that a cut leaves: the score.
_TEXT, _END = 13, 5
# Widest sheet, and the gap between its frames.
_WIDEST, _GAP = 2000, 2


@dataclass(frozen=True)
class Overlay:
    """One object to draw.

    Attributes:
        identity: Number that fixes the colour; the same object keeps it through the video.
        text: Written at the object, for example "7 .93".
        masks: By frame, missing or None where absent.
    """

    identity: int
    text: str
    masks: Sequence[RLE | None] | Mapping[int, RLE]

    def mask(self, frame: int) -> RLE | None:
        """The mask in a frame."""
        if isinstance(self.masks, Mapping):
            return self.masks.get(frame)
        return self.masks[frame]

    def frames(self) -> Iterable[int]:
        """The frames in which it may be present."""
        return self.masks if isinstance(self.masks, Mapping) else range(len(self.masks))


class DrawnFrames(Sequence[Image.Image]):
    """Chosen frames of a video with its objects; each is drawn when it is asked for.

    Args:
        video: Where the pixels come from.
        overlays: Objects of the video.
        scale: As in `draw_overlay`.
        frames: Numbers of the frames.
    """

    def __init__(
        self, video: Frames, overlays: Sequence[Overlay], scale: float, frames: Sequence[int]
    ) -> None:
        self._video, self._scale, self._frames = video, scale, frames
        # A long video may have many objects, each in few frames.
        self._present: dict[int, list[Overlay]] = {frame: [] for frame in frames}
        for overlay in overlays:
            for frame in overlay.frames():
                if frame in self._present:
                    self._present[frame].append(overlay)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # no slices
        frame = self._frames[index]
        return draw_overlay(self._video.frame(frame), self._present[frame], frame, self._scale)


def every_nth(length: int, most: int) -> range:
    """Every n-th of `length` frames, from the first on, with the smallest n for at most `most`."""
    return range(0, length, -(-length // most))


def draw_overlay(
    picture: NDArray[np.uint8], overlays: Sequence[Overlay], frame: int, scale: float
) -> Image.Image:
    """Draws masks, boxes and texts of objects on one frame.

    Args:
        picture: RGB [H, W, 3].
        overlays: Objects of the video.
        frame: Which of its frames this is.
        scale: Factor by which the frame is enlarged, or made smaller below 1. The text has one
            size.

    Returns:
        An image of scale * (W, H) pixels.
    """
    blended = picture.astype(np.float32)
    present = [
        (overlay, rle.decode(runs))
        for overlay in overlays
        if (runs := overlay.mask(frame)) is not None
    ]
    for overlay, mask in present:
        blended[mask] = 0.4 * blended[mask] + 0.6 * np.array(identity_colour(overlay.identity))
    image = Image.fromarray(blended.astype(np.uint8))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    whole = float(scale).is_integer()
    image = image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for overlay, mask in present:
        _label(draw, overlay, mask, scale)
    return image


def sheet_scale(width: int, columns: int, wanted: int) -> float:
    """The factor for frames that stand side by side: a row has at most 2,000 pixels.

    Args:
        width: Of a frame of the video.
        columns: Frames in a row.
        wanted: Width to which small frames are enlarged, by a whole number.
    """
    widest = max(1, (_WIDEST + _GAP) // columns - _GAP)
    return min(max(1, wanted // width), widest / width)


def identity_colour(identity: int) -> tuple[int, int, int]:
    """A bright colour; neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb(identity * 0.381966 % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def save_strip(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path) -> None:
    """Writes rows of frames, each under its title, as one PNG."""
    title = 14
    width, height = rows[0][1][0].size
    columns = max(len(images) for _, images in rows)
    sheet = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, len(rows) * (height + title)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for row, (text, images) in enumerate(rows):
        top = row * (height + title)
        draw.text((2, top + 1), text, fill="black")
        for column, image in enumerate(images):
            sheet.paste(image, (column * (width + _GAP), top + title))
    with whole_file(path) as partial:
        sheet.save(partial)


def save_sheet(images: Sequence[Image.Image], path: Path, columns: int) -> None:
    """Writes images of one size as a grid, row by row."""
    width, height = images[0].width + _GAP, images[0].height + _GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * width - _GAP, rows * height - _GAP))
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * width, place // columns * height))
    with whole_file(path) as partial:
        sheet.save(partial)


def save_animation(images: Iterable[Image.Image], path: Path, duration: float = _DURATION) -> None:
    """Writes frames, each shown for `duration` milliseconds, as an endless animated WebP.

    Few of the images are in memory at a time, but all of the file is. Images of unknown
    number wait in a temporary file beside `path`.

    Args:
        images: At least one, RGB, of one size.
        path: File to write.
        duration: Rounded to whole milliseconds.
    """
    with whole_file(path) as partial, _counted(images, path.parent) as (count, one_by_one):
        film = _Film(followed(one_by_one, path.name, "frame", count), count)
        film.save(partial, save_all=True, duration=round(duration), loop=0, quality=80)


def save_video(images: Iterable[Image.Image], path: Path, rate: float) -> None:
    """Writes frames as an H.264 video in the container of the file's ending (needs PyAV)."""
    import av

    images = followed(images, path.name, "frame")
    first = next(images)
    with whole_file(path) as partial, av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        # The codec takes even sizes only.
        stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for image in itertools.chain([first], images):
            pixels = np.asarray(image)[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


class _Film(Image.Image):  # type: ignore[misc]  # Pillow has no types
    """Images in the form of one with many frames, the only one that Pillow reads step by step."""

    def __init__(self, images: Iterator[Image.Image], count: int) -> None:
        super().__init__()
        self._images, self.n_frames, self._frame = images, count, -1
        self.seek(0)

    def seek(self, frame: int) -> None:
        """Goes on to the next frame; back at the end, which changes nothing."""
        if frame > self._frame:
            image = next(self._images)
            self.im, self._mode, self._size = image.im, image.mode, image.size
            self._frame = frame

    def tell(self) -> int:
        """The number of the present frame."""
        return self._frame


@contextlib.contextmanager
def _counted(
    images: Iterable[Image.Image], folder: Path
) -> Iterator[tuple[int, Iterator[Image.Image]]]:
    """The number of images, and the images one by one."""
    if isinstance(images, Sized):
        yield len(images), iter(images)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        count = 0
        for image in images:
            pickle.dump(image, file)
            count += 1
        file.seek(0)
        yield count, (pickle.load(file) for _ in range(count))


def _label(
    draw: ImageDraw.ImageDraw, overlay: Overlay, mask: NDArray[np.bool_], scale: float
) -> None:
    """Draws the box of a mask, and the text above it or where the frame has room."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return
    colour = identity_colour(overlay.identity)
    left, top = round(int(columns.min()) * scale), round(int(rows.min()) * scale)
    right = max(left + 1, round((int(columns.max()) + 1) * scale))
    bottom = max(top + 1, round((int(rows.max()) + 1) * scale))
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour)
    width, height = draw.im.size
    text, font = readable(f"#{overlay.identity}: {overlay.text}", min(_TEXT, max(1, height - 3)))
    text = _cut(text, font, width - 2)
    _, _, text_right, text_bottom = draw.textbbox((0, 0), text, font=font)
    place = (
        max(0, min(left + 1, width - 1 - math.ceil(text_right))),
        max(0, min(top - _TEXT - 2, height - 1 - math.ceil(text_bottom))),
    )
    draw.rectangle(draw.textbbox(place, text, font=font), fill=colour)
    draw.text(place, text, fill="black", font=font)


def _cut(text: str, font: Any, room: int) -> str:
    """A text of at most some pixels: characters before its end are left out where it is longer."""
    kept, end = text, min(_END, len(text) // 2)
    for length in range(len(text) - end - 1, -1, -1):
        if font.getlength(kept) <= room:
            break
        kept = f"{text[:length]}..{text[len(text) - end :]}"
    while font.getlength(kept) > room:
        kept = kept[:-1]
    return kept
