"""The named problems that are measured, and the tensors of one of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stdeform.shapes import reference_grid

_KINK_MARGIN = 1e-3  # cells
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Workload:
    """One problem: sizes in the letters of the documentation, and how far the points spread.

    Attributes:
        name: What it is called on the command line and in the results.
        spatial_shapes: One row (T, H, W) or (H, W) per level.
        num_heads: M.
        head_dim: D.
        num_points: K, per head and level.
        num_object_queries: Q of a decoder, with reference points anywhere; None for an encoder,
            which has one query per cell, with the cell's centre as its reference point.
        offset_spread: Standard deviation of the sampling offsets, in cells; None for samples
            spread uniformly over the whole volume.
        batch: B.
        dtype: Of the value and, in dense attention, of query and key.
        exact_in: A dtype that sampling locations and logits lose nothing in, for operators that
            take them in no other; None for those of any.
    """

    name: str
    spatial_shapes: tuple[tuple[int, ...], ...]
    num_heads: int
    head_dim: int
    num_points: int
    num_object_queries: int | None = None
    offset_spread: float | None = 2.0
    batch: int = 1
    dtype: str = "float32"
    exact_in: str | None = None

    @property
    def num_cells(self) -> int:
        """S: cells of all levels."""
        return sum(math.prod(shape) for shape in self.spatial_shapes)

    @property
    def num_queries(self) -> int:
        """Q: one per cell in an encoder."""
        return self.num_object_queries or self.num_cells

    @property
    def width(self) -> int:
        """C: channels of all heads."""
        return self.num_heads * self.head_dim

    @property
    def label(self) -> str:
        """Name, dtype, and batch, spread and locations where they are not the usual ones."""
        extras = [] if self.batch == 1 else [f"batch {self.batch}"]
        if self.offset_spread != Workload.offset_spread:
            spread = self.offset_spread
            extras.append("uniform" if spread is None else f"spread {spread:g}")
        if self.exact_in:
            extras.append(f"locations in {self.exact_in}")
        return ", ".join([self.name, self.dtype, *extras])

    def doubled(self) -> Workload:
        """Twice the cells: every level with twice the frames, or twice the height in images."""
        return dataclasses.replace(
            self,
            name=f"{self.name}-double",
            spatial_shapes=tuple((2 * shape[0], *shape[1:]) for shape in self.spatial_shapes),
        )

    def shrunk(self) -> Workload:
        """The same kind of problem on a handful of cells: it loads what a call loads."""
        return dataclasses.replace(
            self,
            spatial_shapes=tuple((2,) * len(shape) for shape in self.spatial_shapes),
            num_object_queries=self.num_object_queries and 4,
        )


# Deformable VisTR (Yarram et al., ICASSP 2022): 36 frames of 300 x 533 at stride 32,
# C = 384, M = 8, K = 32.
_ENCODER = Workload("paper-encoder", ((36, 10, 17),), num_heads=8, head_dim=48, num_points=32)
# Deformable DETR (Zhu et al., ICLR 2021): an 800 x 1066 image at strides 8 to 64.
_IMAGE = Workload(
    "detr-encoder",
    ((100, 167), (50, 84), (25, 42), (13, 21)),
    num_heads=8,
    head_dim=32,
    num_points=4,
)
WORKLOADS = {
    workload.name: workload
    for workload in (
        _ENCODER,
        dataclasses.replace(_ENCODER, name="paper-encoder-large", spatial_shapes=((36, 20, 34),)),
        # Ten object queries per frame.
        dataclasses.replace(_ENCODER, name="paper-decoder", num_object_queries=360),
        _IMAGE,
        dataclasses.replace(_IMAGE, name="detr-decoder", num_object_queries=300),
        # Spatial cross-attention of BEVFormer (Li et al., ECCV 2022), one camera: images of
        # 928 x 1600 at strides 8 to 64, K = 8. Of its 200 x 200 queries a camera sees some: a
        # quarter, if each is seen by one or two of the six cameras.
        dataclasses.replace(
            _IMAGE,
            name="bev-cross",
            spatial_shapes=((116, 200), (58, 100), (29, 50), (15, 25)),
            num_points=8,
            num_object_queries=10_000,
        ),
        Workload("tiny", ((4, 6, 5),), num_heads=2, head_dim=16, num_points=4),
        # One value row of four numbers: what is left is the cost of the call itself.
        Workload("four-elements", ((1, 1, 1),), num_heads=1, head_dim=4, num_points=1),
    )
}


class Inputs(NamedTuple):
    """What `stdeform.st_deform_attn_from_offsets` takes, and a gradient of its result."""

    value: Tensor  # [B, S, M, D]
    reference_points: Tensor  # [B, Q, L, N]
    sampling_offsets: Tensor  # [B, Q, M, L, K, N]
    attention_logits: Tensor  # [B, Q, M, L, K]
    grad_out: Tensor  # [B, Q, M * D]


def make_inputs(workload: Workload, seed: int) -> Inputs:
    """Random tensors of a workload; value and grad_out in its dtype.

    Reference points, offsets and logits are float32 where the value is narrower, as they are under
    autocast, and the value's dtype otherwise. Samples keep 0.1 % of a cell away from cell centres,
    where the interpolation has a kink and two correct answers may differ.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[workload.dtype]
    real = torch.promote_types(dtype, torch.float32)
    batch, heads, dim = workload.batch, workload.num_heads, workload.head_dim
    queries, shapes = workload.num_queries, workload.spatial_shapes
    levels, axes = len(shapes), len(shapes[0])
    samples = (batch, queries, heads, levels, workload.num_points)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=real)

    if workload.num_object_queries is None:
        points = reference_grid(shapes, dtype=real)
    else:
        points = torch.rand(1, queries, 1, axes, generator=generator, dtype=real)
    points = points.expand(batch, queries, levels, axes).contiguous()
    # [L, 1, N], innermost axis first
    sizes = points.new_tensor([list(shape)[::-1] for shape in shapes])[:, None]
    if workload.offset_spread is None:
        places = torch.rand((*samples, axes), generator=generator, dtype=real)
        offsets = (places - points[:, :, None, :, None]) * sizes
    else:
        offsets = normal(*samples, axes) * workload.offset_spread
    value = normal(batch, workload.num_cells, heads, dim).to(dtype)
    cells = points[:, :, None, :, None] * sizes - 0.5 + offsets
    offsets = offsets + _KINK_MARGIN * (1 - 2 * (cells - cells.floor()))
    logits = normal(*samples)
    if workload.exact_in:
        exact = DTYPES[workload.exact_in]
        offsets = _round_locations(points, offsets, sizes, exact)
        logits = logits.to(exact).to(real)
    grad_out = normal(batch, queries, heads * dim).to(dtype)
    return Inputs(value, points, offsets, logits, grad_out)


def _round_locations(points: Tensor, offsets: Tensor, sizes: Tensor, dtype: torch.dtype) -> Tensor:
    """Offsets to the next locations that a 16-bit dtype has and that are no kinks."""
    sizes = sizes.double()
    start = points[:, :, None, :, None].double()
    rounded = (start + offsets / sizes).to(dtype)
    while True:
        cells = rounded.double() * sizes - 0.5
        is_kink = (cells - cells.round()).abs() < _KINK_MARGIN
        if not is_kink.any():
            return ((rounded.double() - start) * sizes).to(offsets.dtype)
        # The next number further from zero has the next number as its bits.
        rounded = (rounded.view(torch.int16) + is_kink).view(dtype)
