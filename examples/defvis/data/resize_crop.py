"""Which part of a video's frames is shown to the network, and how large."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defvis.config import DataConfig
from defvis.data.dataset import Frames

Size = tuple[int, int]


@dataclass(frozen=True)
class ResizeCrop:
    """A window of the frames, the same in all of them, and its size after scaling.

    Attributes:
        left: First column of the window.
        top: First row.
        window: Height and width of the window in pixels of the video.
        size: Height and width in pixels that it is scaled to.
    """

    left: int
    top: int
    window: Size
    size: Size

    def pixels(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cuts and scales RGB frames [T, H, W, 3]."""
        bottom, right = self.top + self.window[0], self.left + self.window[1]
        return scale_frames(frames[:, self.top : bottom, self.left : right], self.size)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Cuts and scales a mask [H, W]; every pixel is its nearest one's."""
        bottom, right = self.top + self.window[0], self.left + self.window[1]
        mask = mask[self.top : bottom, self.left : right]
        if mask.shape == self.size:
            return mask
        height, width = self.size
        return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def network_size(height: int, width: int, config: DataConfig) -> Size:
    """Size of a whole frame of a video as validation and inference show it to the network.

    Where training kept the size of its frames, one whose short side lies outside of those that
    were seen is scaled to the nearest of them.
    """
    short_side = config.short_side
    if not short_side and config.seen_short_sides:
        short = min(height, width)
        nearest = min(max(short, min(config.seen_short_sides)), max(config.seen_short_sides))
        short_side = nearest if nearest != short else 0
    return _fitted(height, width, short_side, config.long_side)


def with_seen_sides(config: DataConfig, videos: Iterable[Frames]) -> DataConfig:
    """The config that knows the scale of the training videos even where they keep their size."""
    sides = config.short_sides or [min(video.height, video.width) for video in videos]
    return replace(config, seen_short_sides=() if config.short_side else (min(sides), max(sides)))


def varies(config: DataConfig) -> bool:
    """True if training shows a video at another size or cut each time."""
    return bool(config.short_sides) or config.crop > 0


def draw_resize_crop(
    random: np.random.Generator, height: int, width: int, config: DataConfig
) -> ResizeCrop:
    """Draws window and size for a training clip.

    The limit on the long side holds for the largest of `config.short_sides`, and smaller ones
    shrink the frame in proportion. Were each limited by itself, then on wide video all choices
    would give one size (as VisTR's ten scales do on 16:9).
    """
    left = top = 0
    window = height, width
    if config.crop > 0 and random.random() < config.crop:
        low, high = config.crop_share
        window = (
            max(1, round(height * random.uniform(low, high))),
            max(1, round(width * random.uniform(low, high))),
        )
        top = int(random.integers(height - window[0] + 1))
        left = int(random.integers(width - window[1] + 1))
    if not config.short_sides:
        return ResizeCrop(left, top, window, _fitted(*window, config.short_side, config.long_side))
    largest = max(config.short_sides)
    share = float(random.choice(config.short_sides)) / largest
    full = _fitted(*window, largest, config.long_side)
    return ResizeCrop(
        left, top, window, (max(1, round(full[0] * share)), max(1, round(full[1] * share)))
    )


def scale_frames(frames: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Scales RGB frames [T, H, W, 3] to height and width `size`."""
    if frames.shape[1:3] == size:
        return frames
    height, width = size
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
            for frame in frames
        ]
    )


def _fitted(height: int, width: int, short_side: int, long_side: int) -> Size:
    """Size after scaling the short side to `short_side`, the long one to at most `long_side`.

    0 keeps the size, or sets no limit.
    """
    scale = short_side / min(height, width) if short_side else 1.0
    if long_side:
        scale = min(scale, long_side / max(height, width))
    if scale == 1:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))
