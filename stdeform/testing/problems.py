"""Sample problems in both forms of the operator, in any dtype and memory layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..shapes import num_cells

Layout = Literal["contiguous", "heads first", "transposed", "sliced", "padded", "expanded"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem in both forms of the operator; `make_problem` draws it.

    Both forms read the same samples: `sampling_locations` and `attention_weights` follow
    from the other three tensors, before everything is rounded to its dtype.
    """

    spatial_shapes: tuple[tuple[int, ...], ...]  # L rows of N sizes
    value: Tensor  # [B, S, M, D]
    sampling_locations: Tensor  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    attention_weights: Tensor  # [B, Q, M, L, K] or [B, Q, M, P]
    reference_points: Tensor  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    attention_logits: Tensor  # [B, Q, M, L, K] or [B, Q, M, P]
    grad_out: Tensor  # [B, Q, M * D], a cotangent of the result
    num_points: tuple[int, ...] | None = None  # of each level, where they may differ

    @property
    def attention(self) -> tuple[Tensor, tuple[tuple[int, ...], ...], Tensor, Tensor]:
        """The arguments of `st_deform_attn`."""
        return self.value, self.spatial_shapes, self.sampling_locations, self.attention_weights

    @property
    def from_offsets(self) -> tuple[Tensor, tuple[tuple[int, ...], ...], Tensor, Tensor, Tensor]:
        """The arguments of `st_deform_attn_from_offsets`."""
        return (
            self.value,
            self.spatial_shapes,
            self.reference_points,
            self.sampling_offsets,
            self.attention_logits,
        )

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem with every tensor in `dtype`; from a rounded one, the exact same."""
        return self.map(lambda tensor: tensor.detach().to(dtype))

    def laid_out(self, layout: Layout) -> Problem:
        """The same problem with every tensor in another memory layout; see `with_layout`."""
        return self.map(lambda tensor: with_layout(tensor.detach(), layout))

    def requires_grad_(self) -> Problem:
        """Makes every tensor but `grad_out` a leaf that requires its gradient."""
        self.map(lambda tensor: tensor.requires_grad_(tensor is not self.grad_out))
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with `change` applied to every tensor."""
        changed: dict[str, Any] = {
            field.name: change(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


def make_problem(
    spatial_shapes: Sequence[Sequence[int]] = ((4, 6, 5),),
    *,
    batch: int = 2,
    num_queries: int = 7,
    num_heads: int = 2,
    head_dim: int = 16,
    num_points: int | Sequence[int] = 3,
    dtype: torch.dtype = torch.float32,
    side_dtype: torch.dtype | None = None,
    boxes: bool = False,
    offset_std: float = 2.0,
    kink_margin: float = 0.0,
    seed: int = 0,
) -> Problem:
    """Draws a problem: normal values, reference points anywhere, normal offsets and logits.

    Args:
        spatial_shapes: One row per level, (T, H, W) or (H, W).
        batch: B.
        num_queries: Q.
        num_heads: M.
        head_dim: D.
        num_points: K of all levels, or of each; then samples are [B, Q, M, P, ...].
        dtype: Of value and `grad_out`.
        side_dtype: Of the other tensors; by default `dtype`.
        boxes: Whether reference points are boxes, centre then size.
        offset_std: Standard deviation of a sample from its reference point on each axis, in
            cells of its level.
        kink_margin: Keeps every sample at least this far from a cell centre on each axis, in
            cells, at most 0.5. There the interpolation has a kink, and with it the gradient of
            the location jumps.
        seed: Of the generator; nothing else is random.

    Returns:
        The problem, contiguous, on the CPU, with no tensor that requires a gradient.
    """
    rows = tuple(tuple(row) for row in spatial_shapes)
    num_levels, num_axes = len(rows), len(rows[0])
    side_dtype = side_dtype or dtype
    generator = torch.Generator().manual_seed(seed)
    per_level = (num_points,) * num_levels if isinstance(num_points, int) else tuple(num_points)
    level = [i for i, count in enumerate(per_level) for _ in range(count)]  # of each of the P
    samples = (batch, num_queries, num_heads, len(level))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu")

    value = normal(batch, sum(map(num_cells, rows)), num_heads, head_dim)
    logits = normal(*samples)
    centre = uniform(batch, num_queries, num_levels, num_axes)
    sizes = centre.new_tensor([row[::-1] for row in rows])  # [L, N] as (x, y, t)
    centre_cells = (centre * sizes - 0.5)[:, :, None, level]
    cells = centre_cells + normal(*samples, num_axes) * offset_std
    low = cells.floor()
    cells = low + kink_margin + (cells - low) * (1 - 2 * kink_margin)
    offsets = cells - centre_cells
    points = centre
    if boxes:
        box = 0.2 + 0.4 * uniform(batch, num_queries, num_levels, num_axes)
        points = torch.cat([centre, box], -1)
        half_box_cells = (box * sizes / 2)[:, :, None, level]
        offsets = offsets * centre.new_tensor(per_level)[level, None] / half_box_cells

    def of_points(samples: Tensor) -> Tensor:
        side = samples.to(side_dtype)
        return side.unflatten(3, (num_levels, -1)) if isinstance(num_points, int) else side

    return Problem(
        spatial_shapes=rows,
        value=value.to(dtype),
        sampling_locations=of_points((cells + 0.5) / sizes[level]),
        attention_weights=of_points(logits.softmax(-1)),
        reference_points=points.to(side_dtype),
        sampling_offsets=of_points(offsets),
        attention_logits=of_points(logits),
        grad_out=normal(batch, num_queries, num_heads * head_dim).to(dtype),
        num_points=None if isinstance(num_points, int) else per_level,
    )


def with_layout(tensor: Tensor, layout: Layout) -> Tensor:
    """A tensor of the same shape in another memory layout.

    - "contiguous": PyTorch's default.
    - "heads first": the second and the third axis change places in memory. The rows of a head of
      value are then next to each other, [B, M, S, D] seen through `transpose(1, 2)`.
    - "transposed": the axes are in memory in reverse order, so the last has the largest stride.
    - "sliced": a view into a larger tensor of NaN, with an offset and gaps on every axis.
    - "padded": the same except on the last axis, which stays contiguous.
    - "expanded": batch element 0 for all, stride 0; the only layout that changes the values.
    """
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "heads first":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "transposed":
        axes = tuple(reversed(range(tensor.dim())))
        return tensor.permute(axes).contiguous().permute(axes)
    if layout in ("sliced", "padded"):
        room = tensor.new_full([2 * size + 1 for size in tensor.shape], float("nan"))
        gaps = [slice(1, None, 2)] * tensor.dim()
        if layout == "padded":
            gaps[-1] = slice(1, tensor.shape[-1] + 1)
        return room[tuple(gaps)].copy_(tensor)
    return tensor[:1].expand_as(tensor)
