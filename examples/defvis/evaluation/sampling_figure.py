"""Figure 1 of the paper: the samples of a query in every frame, and their weights."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from defvis.data.clips import normalise
from defvis.data.dataset import Frames
from defvis.evaluation.overlays import save_sheet, sheet_scale
from defvis.evaluation.sampling_points import deformable, watched
from defvis.models.model import DefVIS

# A point that carried all the weight of its head would have this radius, as a share of the width.
_RADIUS = 0.08
# Small frames are enlarged to about this width.
_DRAW_WIDTH = 320


# From (T, H, W) of the cells to a query's number.
Query = Callable[[Sequence[int]], int]


@dataclass(frozen=True)
class SamplingPoints:
    """The samples of one query.

    Attributes:
        reference: (x, y, t) as fractions of the volume.
        locations: (x, y, t) of the samples of every head, fractions of the volume, [M, K, 3].
        weights: Attention weights, [M, K]; the sum over a head is 1.
    """

    reference: Tensor
    locations: Tensor
    weights: Tensor

    def in_frame(self, frame: int, num_frames: int) -> Tensor:
        """Weights [M, K] with which the samples read a frame: linear in t between neighbours."""
        distance = (self.locations[..., 2] * num_frames - 0.5 - frame).abs()
        return self.weights * (1 - distance).clamp(min=0)


def check_query(model: DefVIS, video: Frames, kind: str, numbers: Sequence[int]) -> None:
    """Checks that a query exists before anything is computed for it.

    Args:
        model: The model.
        video: What it will see.
        kind: "decoder" or "encoder".
        numbers: Slot and frame, or x, y and frame, each from 0.

    Raises:
        ValueError: If it does not exist, or its attention is not deformable in the volume, or
            reads several levels.
    """
    *place, frame = numbers
    if frame >= video.length:
        raise ValueError(f"points must be of a frame below {video.length}, got {frame}")
    if kind == "decoder":
        _check_slot(place[0], model)
        deformable(model.decoder.layers[-1].cross_attention)
    else:
        x, y = place
        _check_pixel(x, y, video.width, video.height)
        deformable(model.encoder.layers[-1].attention)


@torch.no_grad()
def decoder_points(
    model: DefVIS, pixels: NDArray[np.uint8], slot: int, frame: int, layer: int = -1
) -> SamplingPoints:
    """Samples of the decoder query of (slot, frame).

    Args:
        model: In eval mode.
        pixels: RGB [T, H, W, 3], the clip.
        slot: Object slot.
        frame: Frame of the clip.
        layer: Of the decoder.

    Raises:
        ValueError: If the query does not exist, or the layer's attention is not deformable in
            the volume.
    """
    frames = len(pixels)
    _check_slot(slot, model)
    _check_frame(frame, frames)
    attention = model.decoder.layers[layer].cross_attention
    return _observe(model, pixels, attention, lambda shape: slot * frames + frame)


@torch.no_grad()
def encoder_points(
    model: DefVIS, pixels: NDArray[np.uint8], x: float, y: float, frame: int, layer: int = -1
) -> SamplingPoints:
    """Samples of the encoder query of the cell with the pixel (x, y) of a frame.

    Args as in `decoder_points`; a pixel outside the frame is a ValueError too.
    """
    frames, height, width = pixels.shape[:3]
    _check_frame(frame, frames)
    _check_pixel(x, y, width, height)

    def query(shape: Sequence[int]) -> int:
        row, column = int(y / height * shape[1]), int(x / width * shape[2])
        return (frame * shape[1] + row) * shape[2] + column

    return _observe(model, pixels, model.encoder.layers[layer].attention, query)


def draw_points(
    pixels: NDArray[np.uint8], points: SamplingPoints, path: Path, columns: int = 6
) -> None:
    """Draws the samples on the frames of the clip, a colour for each head.

    The area of a point is proportional to the weight with which it reads that frame; a white
    cross marks the reference in the query's own frame.

    Args:
        pixels: RGB [T, H, W, 3].
        points: Samples of a query of this clip.
        path: PNG to write.
        columns: Frames side by side.
    """
    frames, height, width = pixels.shape[:3]
    scale = sheet_scale(width, min(columns, frames), _DRAW_WIDTH)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    images = []
    own = int(float(points.reference[2]) * frames)
    for frame, picture in enumerate(pixels):
        image = Image.fromarray(picture).resize(size)
        draw = ImageDraw.Draw(image, "RGBA")
        for head, (places, weights) in enumerate(
            zip(points.locations, points.in_frame(frame, frames), strict=True)
        ):
            colour = _head_colour(head, len(points.locations))
            for (x, y, _), weight in zip(places.tolist(), weights.tolist(), strict=True):
                if weight > 0:
                    radius = _RADIUS * image.width * weight**0.5
                    centre = x * image.width, y * image.height
                    draw.ellipse(_square(centre, radius), fill=(*colour, 200), outline="black")
        if frame == own:
            x, y = (
                float(points.reference[0]) * image.width,
                float(points.reference[1]) * image.height,
            )
            for line in (((x - 6, y), (x + 6, y)), ((x, y - 6), (x, y + 6))):
                draw.line(line, fill="white", width=2)
        images.append(image)
    save_sheet(images, path, columns)


def _observe(
    model: DefVIS, pixels: NDArray[np.uint8], attention: object, query: Query
) -> SamplingPoints:
    """Runs the model and takes one query's samples from what the layer is given."""
    layer = deformable(attention)

    def wanted(shape: Sequence[int]) -> slice:
        index = query(shape)
        return slice(index, index + 1)

    with watched([layer], wanted) as seen:
        model(normalise(pixels)[None].to(model.device))
    points = seen[layer]
    return SamplingPoints(
        points.references[0, :3].cpu(), points.locations[0].cpu(), points.weights[0].cpu()
    )


def _check_slot(slot: int, model: DefVIS) -> None:
    if not 0 <= slot < model.config.num_slots:
        raise ValueError(f"slot must be 0 to {model.config.num_slots - 1}, got {slot}")


def _check_pixel(x: float, y: float, width: int, height: int) -> None:
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"pixel must lie in {width} x {height}, got ({x}, {y})")


def _check_frame(frame: int, frames: int) -> None:
    if not 0 <= frame < frames:
        raise ValueError(f"frame must be 0 to {frames - 1}, got {frame}")


def _head_colour(head: int, heads: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(head / heads, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _square(centre: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    x, y = centre
    return x - radius, y - radius, x + radius, y + radius
