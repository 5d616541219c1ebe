"""Deformable 3x3 convolution (Dai et al., ICCV 2017), on the library's 2-D attention operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stdeform import st_deform_attn


class DeformConv2d(nn.Module):
    """A 3x3 convolution with a predicted offset for each of its nine taps.

        out[p] = sum over taps i of weight_i x(p + tap_i + offset_i[p])

    x is read bilinearly, zero outside the map; stride 1, same size, no bias. A tap is a level of
    `st_deform_attn`: level i holds weight_i x, and each query reads one point of every level with
    weight 1. So the operator sums over the taps, and the levels are the only
    intermediate of nine times the input's size.

    The offset channels are (dy, dx) of each tap, taps row by row, as in torchvision's
    `deform_conv2d`. They start at zero, that is, as an ordinary convolution.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(inputs, 2 * 9, 1)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, inputs, H, W] to [N, outputs, H, W]."""
        batch, _, height, width = x.shape
        taps = self.weight.permute(2, 3, 1, 0).flatten(0, 1)  # [9, inputs, outputs]
        levels = x.flatten(2).transpose(1, 2)[:, None] @ taps  # [N, 9, H * W, outputs]
        sampled: Tensor = st_deform_attn(
            levels.flatten(1, 2)[:, :, None],
            [(height, width)] * 9,
            self._locations(self.offsets(x).float()),
            levels.new_ones(()).expand(batch, height * width, 1, 9, 1),
        )
        return sampled.transpose(1, 2).reshape(batch, len(self.weight), height, width)

    @staticmethod
    def _locations(offsets: Tensor) -> Tensor:
        """Where the taps read: offsets [N, 18, H, W] to [N, H * W, 1, 9, 1, 2] as (x, y)."""
        height, width = offsets.shape[-2:]
        y = torch.arange(height, device=offsets.device, dtype=offsets.dtype) + 0.5
        x = torch.arange(width, device=offsets.device, dtype=offsets.dtype) + 0.5
        tap = torch.arange(9, device=offsets.device)
        moved = offsets.unflatten(1, (9, 2))
        rows = moved[:, :, 0] + (tap // 3 - 1)[:, None, None] + y[:, None]
        columns = moved[:, :, 1] + (tap % 3 - 1)[:, None, None] + x
        locations = torch.stack((columns / width, rows / height), dim=-1)  # [N, 9, H, W, 2]
        return locations.flatten(2, 3).transpose(1, 2)[:, :, None, :, None]
