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
    """Mirrors, plays backwards, recolours and brightens a clip.

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
    if config.brightness:
        gain = 1 + random.uniform(-config.brightness, config.brightness)
        # Clipped before the cast: bytes would wrap around and turn white into black.
        pixels = np.clip(pixels * np.float32(gain), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels), np.ascontiguousarray(masks)
