"""Renders scenes of the digits world to pixels and visible masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data as skimage_data

from defvis.datasets.digits import Digit, Scene

# Ink covers a pixel from this value of the enlarged digit image on (0 to 1).
_INK = 0.4
# Pixels per pixel of the 8 x 8 digit image, and the empty border around it.
_ENLARGE, _BORDER = 6, 1
# With fewer visible pixels than this, or this share of its largest ink, a digit counts as absent.
_MIN_PIXELS, _MIN_SHARE = 12, 0.1


class Renderer:
    """Draws scenes with scikit-learn's digit images on scikit-image's textures.

    Args:
        digit_images: [N, 8, 8], values 0 to 16.
        height: Frame height in pixels.
        width: Frame width in pixels.
    """

    def __init__(self, digit_images: NDArray[np.float64], height: int, width: int) -> None:
        self._images = digit_images
        self._height, self._width = height, width
        # These three ship inside scikit-image's wheel; nothing is downloaded.
        shipped: Any = skimage_data
        textures = (shipped.brick(), shipped.grass(), shipped.gravel())
        self._textures = [Image.fromarray(texture) for texture in textures]

    @property
    def num_textures(self) -> int:
        """Number of background textures."""
        return len(self._textures)

    def render(
        self, scene: Scene, random: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Draws a scene.

        Args:
            scene: What to draw.
            random: Source of texture crop and pixel noise.

        Returns:
            Pixels [T, H, W, 3] and the visible masks [G, T, H, W] of `scene.digits`.
        """
        frames = len(scene.pan)
        pixels = self._background(scene, random)
        shapes = np.zeros((len(scene.digits), frames, self._height, self._width), dtype=bool)
        for row, digit in enumerate(scene.digits):
            glyph = self._glyph(digit.image)
            for frame in range(frames):
                cover = self._place(glyph, digit, frame)
                colour = digit.colour * digit.brightness[frame]
                pixels[frame] += cover[..., None] * (colour - pixels[frame])
                shapes[row, frame] = cover >= 0.5
        hidden = np.zeros(shapes.shape[1:], dtype=bool)
        if scene.pillar is not None:
            left, right = round(scene.pillar.left), round(scene.pillar.right)
            grain = pixels[:, :, left:right].mean(axis=-1, keepdims=True)
            pixels[:, :, left:right] = scene.pillar.colour * (
                0.85 + 0.15 * grain.mean((0, 2))[:, None]
            )
            hidden[:, :, left:right] = True
        masks = np.zeros_like(shapes)
        for row in reversed(range(len(shapes))):
            visible = shapes[row] & ~hidden
            hidden |= shapes[row]
            least = max(_MIN_PIXELS, _MIN_SHARE * shapes[row].sum(axis=(1, 2)).max())
            enough = visible.sum(axis=(1, 2)) >= least
            masks[row] = visible & enough[:, None, None]
        pixels *= scene.brightness[:, None, None, None]
        pixels += random.standard_normal(pixels.shape, dtype=np.float32) * np.float32(0.015)
        return (np.clip(pixels, 0, 1) * 255).astype(np.uint8), masks

    def _background(self, scene: Scene, random: np.random.Generator) -> NDArray[np.float32]:
        """A panning, tinted crop of a texture, [T, H, W, 3], 0 to 1."""
        pan = np.rint(scene.pan).astype(int)
        height, width = self._height + pan[:, 1].max(), self._width + pan[:, 0].max()
        texture = self._textures[scene.texture]
        zoom = random.uniform(1.2, 2.5)
        zoom = min(zoom, texture.width / width, texture.height / height)
        left = random.uniform(0, texture.width - zoom * width)
        top = random.uniform(0, texture.height - zoom * height)
        crop = texture.resize(
            (int(width), int(height)),
            Image.Resampling.BILINEAR,
            box=(left, top, left + zoom * width, top + zoom * height),
        )
        grey = np.asarray(crop, dtype=np.float32) / 255
        frames: NDArray[np.float32] = np.stack(
            [grey[y : y + self._height, x : x + self._width] for x, y in pan.tolist()]
        )
        return np.multiply(frames[..., None], scene.tint, dtype=np.float32)

    def _glyph(self, index: int) -> Image.Image:
        """A digit image enlarged smoothly, with an empty border, mode F, 0 to 1."""
        padded = np.pad(self._images[index].astype(np.float32) / 16, _BORDER)
        side = padded.shape[0] * _ENLARGE
        return Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC)

    def _place(self, glyph: Image.Image, digit: Digit, frame: int) -> NDArray[np.float32]:
        """How much of each pixel the digit covers in a frame, [H, W], 0 to 1."""
        x, y = digit.centre[frame]
        scale = 8 * _ENLARGE / digit.height[frame]
        cosine, sine = (scale * f(digit.angle[frame]) for f in (math.cos, math.sin))
        half = glyph.width / 2
        # Pillow needs the inverse map: from a pixel of the frame to one of the glyph.
        placed = glyph.transform(
            (self._width, self._height),
            Image.Transform.AFFINE,
            (
                cosine,
                sine,
                half - cosine * x - sine * y,
                -sine,
                cosine,
                half + sine * x - cosine * y,
            ),
            Image.Resampling.BILINEAR,
        )
        value = np.asarray(placed, dtype=np.float32)
        cover: NDArray[np.float32] = np.clip((value - _INK) / 0.2 + 0.5, 0, 1)
        return cover
