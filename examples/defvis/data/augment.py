"""Random changes of a clip, the same for all of its frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defvis.config import DataConfig


@dataclass(frozen=True)
class Augmentation:
    """How a clip is changed.

    Attributes:
        flip: Mirrored.
        reverse: Played backwards.
        channels: The colour channel, 0 to 2, that is shown as each of red, green and blue.
        brightness: Relative change.
        contrast: Relative change.
        saturation: Relative change.
        hue: Turn in degrees.
    """

    flip: bool
    reverse: bool
    channels: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float

    def apply(
        self, pixels: NDArray[np.uint8], masks: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Mirrors, plays backwards and recolours a clip.

        Args:
            pixels: RGB [T, H, W, 3].
            masks: [G, T, H, W].

        Returns:
            New pixels and masks of the same shapes.
        """
        if self.flip:
            pixels, masks = pixels[:, :, ::-1], masks[..., ::-1]
        if self.reverse:
            pixels, masks = pixels[::-1], masks[:, ::-1]
        if self.channels != (0, 1, 2):
            pixels = pixels[..., list(self.channels)]
        if self.brightness or self.contrast or self.saturation or self.hue:
            floats = pixels * np.float32(1 + self.brightness)
            if self.contrast or self.saturation or self.hue:
                matrix = _colours(1 + self.contrast, 1 + self.saturation, np.radians(self.hue))
                grey = floats.mean(dtype=np.float64)
                floats = floats @ matrix.T + np.float32(grey) * (1 - matrix.sum(axis=1))
            # Clipped before the cast: bytes would wrap around and turn white into black.
            pixels = np.clip(floats, 0, 255).astype(np.uint8)
        # Copies: a view of one frame played backwards is contiguous and keeps its negative stride,
        # which PyTorch refuses.
        return pixels.copy(), masks.copy()

    def describe(self) -> list[str]:
        """Each change that can be seen, in a word or two."""
        words = ["mirrored"] * self.flip + ["backwards"] * self.reverse
        if self.channels != (0, 1, 2):
            words.append("RGB from " + "".join("RGB"[channel] for channel in self.channels))
        words += [
            f"{name} {getattr(self, name):+.0%}"
            for name in ("brightness", "contrast", "saturation")
            if round(100 * getattr(self, name))
        ]
        return words + [f"hue {self.hue:+.0f}\N{DEGREE SIGN}"] * bool(round(self.hue))


def draw_augmentation(config: DataConfig, random: np.random.Generator) -> Augmentation:
    """Draws how a clip is changed, from the probabilities and ranges of `config`."""
    flip = random.random() < config.flip
    reverse = random.random() < config.reverse
    permuted = random.random() < config.permute_channels
    channels = tuple(random.permutation(3).tolist()) if permuted else (0, 1, 2)
    limits = (config.brightness, config.contrast, config.saturation, config.hue)
    return Augmentation(
        flip,
        reverse,
        channels,
        *(
            random.uniform(-limit, limit) if random.random() < config.recolour else 0.0
            for limit in limits
        ),
    )


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
