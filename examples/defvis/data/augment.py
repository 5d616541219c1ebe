"""Random changes of a clip, the same for all of its frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defvis.config import DataConfig


def augment_clip(
    pixels: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    config: DataConfig,
    random: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Mirrors, plays backwards and recolours a clip.

    Args:
        pixels: RGB [T, H, W, 3].
        masks: [G, T, H, W].
        config: Probabilities and ranges.
        random: Source of every draw.

    Returns:
        New pixels and masks of the same shapes.
    """
    if random.random() < config.flip:
        pixels, masks = pixels[:, :, ::-1], masks[..., ::-1]
    if random.random() < config.reverse:
        pixels, masks = pixels[::-1], masks[:, ::-1]
    if random.random() < config.permute_channels:
        pixels = pixels[..., random.permutation(3)]
    brightness, contrast, saturation, hue = (
        random.uniform(-limit, limit) if random.random() < config.recolour else 0.0
        for limit in (config.brightness, config.contrast, config.saturation, config.hue)
    )
    if brightness or contrast or saturation or hue:
        floats = pixels * np.float32(1 + brightness)
        if contrast or saturation or hue:
            matrix = _colours(1 + contrast, 1 + saturation, np.radians(hue))
            grey = floats.mean(dtype=np.float64)
            floats = floats @ matrix.T + np.float32(grey) * (1 - matrix.sum(axis=1))
        # Clipped before the cast: bytes would wrap around and turn white into black.
        pixels = np.clip(floats, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels), np.ascontiguousarray(masks)


def _colours(contrast: float, saturation: float, angle: float) -> NDArray[np.float32]:
    """A map of RGB, [3, 3], that changes contrast (about a grey), saturation and hue.

    Saturation and hue act on the colour's difference to its grey: they scale it, and turn it
    about the grey axis. Greys keep their place up to the change of contrast.
    """
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross
    matrix: NDArray[np.float32] = (contrast * (grey + saturation * turn)).astype(np.float32)
    return matrix
