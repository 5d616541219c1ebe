"""What `torch.utils.flop_counter.FlopCounterMode` counts for the operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _ops  # noqa: F401  the operator must be there


@register_flop_formula(torch.ops.stdeform.st_deform_attn)
def _(
    value: Sequence[int],  # shapes of the arguments
    spatial_shapes: Sequence[int],
    reference_points: Sequence[int] | None,
    positions: Sequence[int],
    scores: Sequence[int],
    num_points: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    """A multiplication and an addition per sample, corner and channel."""
    return 2 * _corner_channels(value, positions)


@register_flop_formula(torch.ops.stdeform.st_deform_attn_backward)
def _(
    grad_out: Sequence[int],
    value: Sequence[int],
    spatial_shapes: Sequence[int],
    reference_points: Sequence[int] | None,
    positions: Sequence[int],
    scores: Sequence[int],
    num_points: Sequence[int],
    needs: Sequence[bool],
    *args: Any,
    **kwargs: Any,
) -> int:
    """As many for the gradient of the value, and as many for all others together."""
    return 2 * _corner_channels(value, positions) * (needs[0] + any(needs[1:]))


def _corner_channels(value: Sequence[int], positions: Sequence[int]) -> int:
    *samples, axes = positions
    corners: int = 2**axes
    return math.prod(samples) * corners * value[-1]
