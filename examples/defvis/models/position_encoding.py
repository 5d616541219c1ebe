"""Sine position encodings: of the cells of a video volume, and of single numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_3d(padding_mask: Tensor, embed_dim: int) -> Tensor:
    """3-D sine position encoding of VisTR.

    Each axis takes a third of the channels, in the order (t, y, x); where C is not divisible by
    6, y and x take the even number below a third and t the rest. A cell's coordinate is the
    count of real cells up to and including it, divided by their number and times 2 pi, so it is
    relative to the clip and the frame and blind to padding.

    Args:
        padding_mask: bool [B, T, H, W], True on padding.
        embed_dim: Channels C, even and at least 6.

    Returns:
        float32 [B, C, T, H, W].

    Raises:
        ValueError: If embed_dim is odd or too small.
    """
    if embed_dim % 2 or embed_dim < 6:
        raise ValueError(
            f"embed_dim must be even and at least 6 for three sine axes, got {embed_dim}"
        )
    third = embed_dim // 6 * 2
    real = (~padding_mask).float()
    axes = []
    for axis, channels in ((1, embed_dim - 2 * third), (2, third), (3, third)):
        count = real.cumsum(axis)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        axes.append(sine_embedding(count / (last + 1e-6), channels))
    return torch.cat(axes, dim=-1).permute(0, 4, 1, 2, 3)


def sine_embedding(x: Tensor, num_channels: int) -> Tensor:
    """Sines and cosines of 2 pi x at wavelengths from 1 to 10000.

    Channel 2j holds sin(2 pi x / f_j), channel 2j + 1 the cosine, f_j = 10000^(2j / channels).

    Args:
        x: Any shape, fractions of a clip or frame.
        num_channels: Even.

    Returns:
        [..., num_channels].
    """
    even = torch.arange(0, num_channels, 2, dtype=torch.float32, device=x.device)
    angle = 2 * math.pi * x[..., None] / 10000 ** (even / num_channels)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)
