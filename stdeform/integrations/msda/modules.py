"""What code of Deformable DETR's family imports from its `modules`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import stdeform

from ... import _layer_checks

__all__ = ["MSDeformAttn"]

_HALVES = (torch.float16, torch.bfloat16)


class MSDeformAttn(stdeform.MSDeformAttn):
    """`stdeform.MSDeformAttn` with the names of the layer in Deformable DETR and ViT-Adapter.

    Parameters, initialisation and result are the same, random numbers included. The attributes of
    `stdeform.MSDeformAttn` are there too.

    Args:
        d_model: Channels of query, value and output.
        n_levels: Feature levels.
        n_heads: Attention heads; divides `d_model`.
        n_points: Sampling points per head and level.
        ratio: Channels of the projected value per channel of `d_model` (ViT-Adapter);
            `int(d_model * ratio)` is a multiple of `n_heads`.

    Attributes:
        im2col_step: May be set and means nothing: any batch size works.

    Raises:
        TypeError: A size is not an int.
        ValueError: A size is below 1, or `n_heads` does not divide `d_model` or the channels of the
            projected value.
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        ratio: float = 1.0,
    ) -> None:
        _layer_checks.check_layer_sizes(
            d_model=d_model, n_levels=n_levels, n_heads=n_heads, n_points=n_points
        )
        inner_dim = int(d_model * ratio)
        if inner_dim < 1 or inner_dim % n_heads:
            raise ValueError(
                f"int(d_model * ratio) must be a positive multiple of n_heads, {n_heads}, got "
                f"{inner_dim} for ratio {ratio}"
            )
        self.ratio = ratio
        super().__init__(d_model, n_levels, n_heads, n_points)
        self.im2col_step = 64

    @property
    def d_model(self) -> int:
        """Channels of query, value and output."""
        return self.embed_dim

    @property
    def n_levels(self) -> int:
        """Feature levels."""
        return self.num_levels

    @property
    def n_heads(self) -> int:
        """Attention heads."""
        return self.num_heads

    @property
    def n_points(self) -> int:
        """Sampling points per head and level."""
        num_points: int = self.num_points
        return num_points

    def _inner_dim(self) -> int:
        return int(self.embed_dim * self.ratio)

    def reset_parameters(self) -> None:
        """Calls `_reset_parameters`, which subclasses of the original layer override."""
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        super().reset_parameters()

    def extra_repr(self) -> str:
        """The sizes as the constructor takes them."""
        return (
            f"d_model={self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, "
            f"n_points={self.n_points}, ratio={self.ratio}"
        )

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Sequence[Sequence[int]] | Tensor,
        input_level_start_index: Sequence[int] | Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """As `stdeform.MSDeformAttn.forward`; reference points of 16 bits fit any layer."""
        if isinstance(reference_points, Tensor) and reference_points.dtype in _HALVES:
            reference_points = reference_points.to(torch.float32)
        return super().forward(
            query,
            reference_points,
            input_flatten,
            input_spatial_shapes,
            input_level_start_index,
            input_padding_mask,
        )
