"""Overlay pictures: masks, boxes and identities on the frames; as PNG, animated WebP, video."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from defvis.data import rle
from defvis.data.rle import RLE

# Milliseconds per frame of the animations (5 frames a second, YouTube-VIS's own rate is 6).
_DURATION = 200
# Height of the text in pixels.
_TEXT = 13


@dataclass(frozen=True)
class Overlay:
    """One object to draw.

    Attributes:
        identity: Number that fixes the colour; the same object keeps it through the video.
        text: Written at the object, for example "7 .93".
        masks: One entry per frame, None where absent.
    """

    identity: int
    text: str
    masks: Sequence[RLE | None]


def draw_overlays(
    pixels: NDArray[np.uint8], overlays: Sequence[Overlay], scale: int = 2
) -> list[Image.Image]:
    """Draws objects on the frames [T, H, W, 3] of a whole video, each as `draw_overlay` does."""
    return [draw_overlay(picture, overlays, frame, scale) for frame, picture in enumerate(pixels)]


def draw_overlay(
    picture: NDArray[np.uint8], overlays: Sequence[Overlay], frame: int, scale: int
) -> Image.Image:
    """Draws masks, boxes and texts of objects on one frame.

    Args:
        picture: RGB [H, W, 3].
        overlays: Objects of the video.
        frame: Which of its frames this is.
        scale: Integer factor by which small frames are enlarged.

    Returns:
        An image of scale * (W, H) pixels.
    """
    blended = picture.astype(np.float32)
    present = [
        (overlay, rle.decode(runs))
        for overlay in overlays
        if (runs := overlay.masks[frame]) is not None
    ]
    for overlay, mask in present:
        blended[mask] = 0.4 * blended[mask] + 0.6 * np.array(identity_colour(overlay.identity))
    image = Image.fromarray(blended.astype(np.uint8))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for overlay, mask in present:
        _label(draw, overlay, mask, scale)
    return image


def identity_colour(identity: int) -> tuple[int, int, int]:
    """A bright colour; neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb(identity * 0.381966 % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def save_strip(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path) -> None:
    """Writes rows of frames, each under its title, as one PNG."""
    gap, title = 2, 14
    width, height = rows[0][1][0].size
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + title)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (text, images) in enumerate(rows):
        top = row * (height + title)
        draw.text((2, top + 1), text, fill="black")
        for column, image in enumerate(images):
            sheet.paste(image, (column * (width + gap), top + title))
    sheet.save(path)


def save_sheet(images: Sequence[Image.Image], path: Path, columns: int) -> None:
    """Writes images of one size as a grid, row by row."""
    gap = 2
    width, height = images[0].width + gap, images[0].height + gap
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * width - gap, rows * height - gap))
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * width, place // columns * height))
    sheet.save(path)


def save_animation(images: Iterable[Image.Image], path: Path, duration: float = _DURATION) -> None:
    """Writes frames, each shown for `duration` milliseconds, as an endless animated WebP."""
    images = iter(images)
    next(images).save(
        path, save_all=True, append_images=images, duration=round(duration), loop=0, quality=80
    )


def save_video(images: Iterable[Image.Image], path: Path, rate: float) -> None:
    """Writes frames as an H.264 video in the container of the file's ending (needs PyAV)."""
    import av

    images = iter(images)
    first = next(images)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        # The codec takes even sizes only.
        stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for image in itertools.chain([first], images):
            pixels = np.asarray(image)[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _label(
    draw: ImageDraw.ImageDraw, overlay: Overlay, mask: NDArray[np.bool_], scale: int
) -> None:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return
    colour = identity_colour(overlay.identity)
    left, top = int(columns.min()) * scale, int(rows.min()) * scale
    right, bottom = (int(columns.max()) + 1) * scale, (int(rows.max()) + 1) * scale
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour)
    font = ImageFont.load_default(size=_TEXT)
    place = left + 1, max(0, top - _TEXT - 2)
    text = f"#{overlay.identity}: {overlay.text}"
    draw.rectangle(draw.textbbox(place, text, font=font), fill=colour)
    draw.text(place, text, fill="black", font=font)
