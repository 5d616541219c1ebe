"""Sample problems, the `grid_sample` composite and the tolerances: for tests and benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import level_starts, num_cells

__all__ = [
    "LAYOUTS",
    "TOLERANCES",
    "Problem",
    "Tolerance",
    "assert_close",
    "composite",
    "composite_from_offsets",
    "excess",
    "make_problem",
    "with_layout",
]

Layout = Literal["contiguous", "heads first", "transposed", "sliced", "padded", "expanded"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem in both forms of the operator; `make_problem` draws it.

    The two forms ask for the same samples: `sampling_locations` and `attention_weights` follow
    from the other three tensors, before everything is rounded to its dtype.
    """

    spatial_shapes: tuple[tuple[int, ...], ...]  # L rows of N sizes
    value: Tensor  # [B, S, M, D]
    sampling_locations: Tensor  # [B, Q, M, L, K, N]
    attention_weights: Tensor  # [B, Q, M, L, K]
    reference_points: Tensor  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor  # [B, Q, M, L, K, N]
    attention_logits: Tensor  # [B, Q, M, L, K]
    grad_out: Tensor  # [B, Q, M * D], a cotangent of the result

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
        """Makes every tensor but `grad_out` a leaf that asks for its gradient."""
        self.map(lambda tensor: tensor.requires_grad_(tensor is not self.grad_out))
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with `change` applied to every tensor."""
        changed: dict[str, Any] = {
            field.name: change(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "spatial_shapes"
        }
        return dataclasses.replace(self, **changed)


def make_problem(
    spatial_shapes: Sequence[Sequence[int]] = ((4, 6, 5),),
    *,
    batch: int = 2,
    num_queries: int = 7,
    num_heads: int = 2,
    head_dim: int = 16,
    num_points: int = 3,
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
        num_points: K.
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
    samples = (batch, num_queries, num_heads, num_levels, num_points)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    value = normal(batch, sum(map(num_cells, rows)), num_heads, head_dim)
    logits = normal(*samples)
    centre = uniform(batch, num_queries, num_levels, num_axes)
    sizes = torch.tensor([row[::-1] for row in rows], dtype=torch.float64)  # [L, N] as (x, y, t)
    centre_cells = (centre * sizes - 0.5)[:, :, None, :, None, :]
    cells = centre_cells + normal(*samples, num_axes) * offset_std
    low = cells.floor()
    cells = low + kink_margin + (cells - low) * (1 - 2 * kink_margin)
    offsets = cells - centre_cells
    points = centre
    if boxes:
        box = 0.2 + 0.4 * uniform(batch, num_queries, num_levels, num_axes)
        points = torch.cat([centre, box], -1)
        half_box_cells = (box * sizes / 2)[:, :, None, :, None, :]
        offsets = offsets * num_points / half_box_cells
    return Problem(
        spatial_shapes=rows,
        value=value.to(dtype),
        sampling_locations=((cells + 0.5) / sizes[:, None]).to(side_dtype),
        attention_weights=logits.flatten(3).softmax(-1).view(samples).to(side_dtype),
        reference_points=points.to(side_dtype),
        sampling_offsets=offsets.to(side_dtype),
        attention_logits=logits.to(side_dtype),
        grad_out=normal(batch, num_queries, num_heads * head_dim).to(dtype),
    )


def with_layout(tensor: Tensor, layout: Layout) -> Tensor:
    """A tensor of the same shape in another memory layout.

    - "contiguous": as PyTorch makes it.
    - "heads first": the second and the third axis change places in memory. The rows of a head of
      value lie next to each other then, [B, M, S, D] seen through `transpose(1, 2)`.
    - "transposed": the axes lie in memory in reverse order, so the last has the largest stride.
    - "sliced": a view into a larger tensor of NaN, with an offset and gaps on every axis.
    - "padded": the same but for the last axis, which stays one run of memory.
    - "expanded": batch row 0 for all rows, stride 0; the only layout that changes the values.
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


# -- the usual PyTorch way ---------------------------------------------------------------------


def composite(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    sampling_locations: Tensor,  # [B, Q, M, L, K, N]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M * D]
    """`st_deform_attn` as one writes it without this library: `grid_sample` per level.

    Where dtypes differ everything takes the wider one. The baseline of the benchmarks, and an
    oracle for finite coordinates.
    """
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    batch, _, num_heads, head_dim = value.shape
    _, num_queries, _, _, num_points, num_axes = sampling_locations.shape
    starts = level_starts(spatial_shapes)
    grids = (2 * sampling_locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # [B * M, Q, L, K]
    out = value.new_zeros(batch * num_heads, head_dim, num_queries, dtype=dtype)
    for level, (start, shape) in enumerate(zip(starts, spatial_shapes, strict=True)):
        rows = value[:, start : start + num_cells(shape)].to(dtype)  # [B, S_l, M, D]
        volume = rows.permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, *shape)
        grid = grids[:, :, level]  # [B * M, Q, K, N]
        read = F.grid_sample(
            volume,
            grid if num_axes == 2 else grid[:, :, :, None],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        ).view(batch * num_heads, head_dim, num_queries, num_points)
        out = out + (read * weights[:, None, :, level]).sum(-1)
    return out.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).to(value.dtype)


def composite_from_offsets(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
    reference_points: Tensor,  # [B, Q, L, N] points or [B, Q, L, 2N] boxes
    sampling_offsets: Tensor,  # [B, Q, M, L, K, N]
    attention_logits: Tensor,  # [B, Q, M, L, K]
) -> Tensor:  # [B, Q, M * D]
    """`st_deform_attn_from_offsets` as one writes it without this library."""
    num_points, num_axes = sampling_offsets.shape[-2:]
    points = reference_points[:, :, None, :, None]
    if reference_points.shape[-1] == num_axes:
        sizes = sampling_offsets.new_tensor([list(row)[::-1] for row in spatial_shapes])
        locations = points + sampling_offsets / sizes[:, None]
    else:
        centre, box = points.chunk(2, -1)
        locations = centre + sampling_offsets / num_points * box * 0.5
    weights = attention_logits.flatten(3).softmax(-1).view(attention_logits.shape)
    return composite(value, spatial_shapes, locations, weights)


# -- tolerances --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the float64 oracle of the same, already rounded inputs.

    An element may differ by `relative` times its own magnitude plus `absolute` times the root
    mean square of the whole expected tensor.

    Attributes:
        relative: For the one rounding of the result into its dtype, half a unit in the last
            place.
        absolute: For the arithmetic before it, whose terms cancel.
        reason: Where the numbers come from.
        rejects: The mutants that must be further away than this, by their names in the tests.
    """

    relative: float
    absolute: float
    reason: str
    rejects: tuple[str, ...]


_WRONG_MEANING = (
    "half_cell_shift",
    "swapped_axes",
    "constant_output",
    "align_corners",
    "border_padding",
    "swapped_points",
)
_LOW_PRECISION = (*_WRONG_MEANING, "low_precision_coordinates", "low_precision_sums")
_FLOAT32 = (
    "float32 coordinates of a level of up to 64 cells per axis are off by up to 4e-6 cells; the "
    "worst element seen was at half of this"
)
_ROUNDED = "float32 arithmetic as for float32, then one rounding: nothing but the result is {}"

# By the dtype of the tensor compared. A float32 gradient of a bfloat16 problem is held to
# float32: all arithmetic is. Gradients of locations need points off the kinks (`kink_margin`).
TOLERANCES: dict[tuple[torch.dtype, Literal["forward", "gradient"]], Tolerance] = {
    (torch.float64, "forward"): Tolerance(
        2**-53, 2e-13, "float64 rounding, ten times the worst element seen", _WRONG_MEANING
    ),
    (torch.float64, "gradient"): Tolerance(
        2**-53, 3e-12, "float64 rounding, ten times the worst element seen", _WRONG_MEANING
    ),
    (torch.float32, "forward"): Tolerance(2**-24, 4e-5, _FLOAT32, _LOW_PRECISION),
    (torch.float32, "gradient"): Tolerance(2**-24, 3e-4, _FLOAT32, _LOW_PRECISION),
    (torch.float16, "forward"): Tolerance(2**-11, 4e-5, _ROUNDED.format("half"), _LOW_PRECISION),
    (torch.float16, "gradient"): Tolerance(2**-11, 3e-4, _ROUNDED.format("half"), _LOW_PRECISION),
    (torch.bfloat16, "forward"): Tolerance(
        2**-8, 4e-5, _ROUNDED.format("bfloat16"), _LOW_PRECISION
    ),
    (torch.bfloat16, "gradient"): Tolerance(
        2**-8, 3e-4, _ROUNDED.format("bfloat16"), _LOW_PRECISION
    ),
}


def excess(actual: Tensor, expected: Tensor, kind: Literal["forward", "gradient"]) -> float:
    """The worst element's error over what `TOLERANCES` allows it; at most 1 if all are close.

    Args:
        actual: The result, in the dtype whose tolerance counts.
        expected: The float64 oracle's result for the same rounded inputs.
        kind: Which column of the table.

    Returns:
        0 for empty tensors; infinity where `actual` holds a NaN or infinity, or anything but
        zero although all of `expected` is zero.

    Raises:
        ValueError: The shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {list(actual.shape)} and {list(expected.shape)}")
    if actual.numel() == 0:
        return 0.0
    tolerance = TOLERANCES[actual.dtype, kind]
    expected = expected.detach().to(torch.float64)
    error = (actual.detach().to(torch.float64) - expected).abs()
    scale = expected.square().mean().sqrt()
    allowed = tolerance.relative * expected.abs() + tolerance.absolute * scale
    ratio = torch.where(error == 0, 0.0, error / allowed)
    return float(ratio.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def assert_close(
    actual: Tensor, expected: Tensor, kind: Literal["forward", "gradient"], name: str = "result"
) -> None:
    """Asserts that `excess` is at most 1.

    Raises:
        AssertionError: An element is further away; says by how much.
        ValueError: The shapes differ.
    """
    worst = excess(actual, expected, kind)
    if not worst <= 1:
        raise AssertionError(
            f"{name} of shape {list(actual.shape)}, {actual.dtype}, is {worst:.3g} times as far "
            f"from the oracle as its {kind} tolerance allows"
        )
