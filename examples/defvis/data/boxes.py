"""Boxes as (centre x, centre y, width, height) in fractions of the frame."""

from __future__ import annotations

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """Turns [..., 4] centre boxes into (left, top, right, bottom); negative sizes count as 0."""
    centre, size = boxes[..., :2], boxes[..., 2:].clamp(min=0)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def generalised_iou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """GIoU of boxes pair by pair, with broadcasting.

    Args:
        a: Centre boxes, [..., 4].
        b: Centre boxes, broadcastable to `a`.
        eps: Added to both denominators, so that two boxes without area give a finite value.

    Returns:
        IoU - (hull - union) / hull, in [-1, 1], of the broadcast shape without the last axis.
    """
    a, b = to_corners(a), to_corners(b)
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    intersection = inner.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    hull = outer.prod(-1)
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Smallest box around each mask.

    Args:
        masks: bool, [..., H, W], on the CPU.

    Returns:
        float32 [..., 4] centre boxes in fractions of (W, H); zeros where a mask is empty.
    """
    height, width = masks.shape[-2:]
    # NumPy takes a tenth of PyTorch's time to look along an axis of bools.
    columns, rows = (torch.from_numpy(masks.numpy().any(axis)) for axis in (-2, -1))
    left, right = _extent(columns, width)
    top, bottom = _extent(rows, height)
    boxes = torch.stack(
        ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1
    )
    return boxes * rows.any(-1)[..., None]


def _extent(occupied: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and one-past-last occupied index of [..., size], as fractions of size."""
    first = occupied.float().argmax(-1)
    last = size - occupied.flip(-1).float().argmax(-1)
    return first / size, last / size
