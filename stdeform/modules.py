"""The attention layers: projections around `st_deform_attn_from_offsets`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import _checks, _layer_checks, _proxies, functional
from ._shape_tensors import read_rows
from .functional import Backend

__all__ = ["MSDeformAttn", "STDeformAttn"]


class _DeformAttn(nn.Module):
    """The common part of both layers, which differ in N and in the names of their arguments."""

    num_points: Any  # an int, or a tuple with one for each level
    _num_axes: ClassVar[int]
    _names: ClassVar[tuple[str, str, str]]  # of value, spatial_shapes and padding_mask

    def __init__(
        self,
        embed_dim: int,
        num_levels: int,
        num_heads: int,
        num_points: int | Sequence[int],
        backend: Backend,
    ) -> None:
        super().__init__()
        _layer_checks.check_layer_sizes(
            embed_dim=embed_dim, num_levels=num_levels, num_heads=num_heads, num_points=num_points
        )
        _checks.check_backend(backend)
        self.embed_dim = embed_dim
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points if isinstance(num_points, int) else tuple(num_points)
        self.backend: Backend = backend
        samples = num_heads * sum(self._points_per_level())
        self.sampling_offsets = nn.Linear(embed_dim, samples * self._num_axes)
        self.attention_weights = nn.Linear(embed_dim, samples)
        inner_dim = self._inner_dim()
        self.value_proj = nn.Linear(embed_dim, inner_dim)
        self.output_proj = nn.Linear(inner_dim, embed_dim)
        self.reset_parameters()

    def _points_per_level(self) -> tuple[int, ...]:
        """K of each level."""
        points = self.num_points
        return (points,) * self.num_levels if isinstance(points, int) else tuple(points)

    def _inner_dim(self) -> int:
        """Channels of the projected value, a multiple of `num_heads`; for subclasses to change."""
        return self.embed_dim

    def reset_parameters(self) -> None:
        """Initialises: fixed sampling pattern, uniform weights, Xavier projections.

        A model that initialises all its matrices itself must call this afterwards, or the
        pattern is lost.
        """
        levels = [
            _initial_offsets(self.num_heads, points, self._num_axes)
            for points in self._points_per_level()
        ]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(torch.cat(levels, 1).flatten())  # [M, P, N]
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def extra_repr(self) -> str:
        """The sizes and the backend, as the constructor takes them."""
        return (
            f"embed_dim={self.embed_dim}, num_levels={self.num_levels}, "
            f"num_heads={self.num_heads}, num_points={self.num_points}, "
            f"backend={self.backend!r}"
        )

    def _attend(
        self,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [1 or B, Q, (L,) N or 2N]
        value: Tensor,  # [B, S, C]
        spatial_shapes: Sequence[Sequence[int]],  # L rows of N sizes
        padding_mask: Tensor | None,  # [B, S]
        level_starts: Sequence[int] | Tensor | None = None,  # [L]
    ) -> Tensor:  # [B, Q, C]
        try:
            sizes = _layer_checks.check_layer_inputs(
                self._names,
                (self.embed_dim, self.num_levels, self._num_axes),
                *(query, reference_points, value, spatial_shapes, padding_mask, level_starts),
            )
        except TypeError:
            inputs = (query, reference_points, value, spatial_shapes, padding_mask)
            if _proxies.among(inputs):
                return self._record(*inputs)
            raise
        projected, offsets, logits = self._project(query, value, padding_mask)
        _layer_checks.check_layer_dtypes(projected, reference_points, offsets, logits)
        out = functional.attend(
            projected,
            sizes,
            _spread(reference_points, query, self.num_levels),
            offsets,
            logits,
            self._points_per_level(),
            self.backend,
        )
        projected_out: Tensor = self.output_proj(out)
        return projected_out

    def _record(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[Sequence[int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """The same on proxies of torch.fx: the operator, which checks where it runs, is a node."""
        projected, offsets, logits = self._project(query, value, padding_mask)
        out = functional.st_deform_attn_from_offsets(
            projected,
            spatial_shapes,
            _spread_node(reference_points, query, self.num_levels),
            offsets,
            logits,
            num_points=self._points_per_level(),
            backend=self.backend,
        )
        projected_out: Tensor = self.output_proj(out)
        return projected_out

    def _project(
        self, query: Tensor, value: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The projected value [B, S, M, D], offsets [B, Q, M, P, N] and logits [B, Q, M, P]."""
        samples = (self.num_heads, sum(self._points_per_level()))
        try:
            projected = self.value_proj(value)
            if padding_mask is not None:
                # After the projection, because its bias would make zeroed rows nonzero again.
                projected = projected.masked_fill(padding_mask[..., None], 0.0)
            offsets = _split(self.sampling_offsets(query), *samples, self._num_axes)
            logits = _split(self.attention_weights(query), *samples)
        except RuntimeError:
            _layer_checks.explain_projection_error(
                self._names, self.value_proj.weight, query, value, padding_mask
            )
            raise
        heads = (self.num_heads, self._inner_dim() // self.num_heads)
        return _split(projected, *heads), offsets, logits


class STDeformAttn(_DeformAttn):
    """Spatio-temporal deformable attention over video features.

    Each query predicts, for every head and level, `num_points` offsets from its reference point
    and their weights; the layer reads the projected value there, trilinearly, and projects the
    weighted sum. Equation 2 of *Deformable VisTR* (Yarram et al., ICASSP 2022), extended to
    levels; coordinates, padding and dtypes are those of `st_deform_attn_from_offsets`.

    At the start the weights are uniform and the offsets do not depend on the query: head m
    looks along compass direction m of `num_heads` in (x, y), at whole-cell ring radii, and its
    points take turns over the frames -2 to 2 around the reference (-1 to 1 for 3 or 4 points,
    its own frame for fewer). Points that fall before the first or past the last frame read zero.

    Under autocast the projections and the value take autocast's dtype; reference points keep
    theirs, and coordinates are computed in float32.

    Args:
        embed_dim: Channels C of query, value and output.
        num_levels: Feature levels L.
        num_heads: Attention heads M; divides `embed_dim`.
        num_points: Sampling points K per head and level; a sequence of L where they differ.
        backend: "auto", "native" or "reference", as in `st_deform_attn_from_offsets`.

    Raises:
        TypeError: A size is not an int.
        ValueError: A size is below 1, `num_heads` does not divide `embed_dim`, or `backend` is
            none of the three.

    Example:
        >>> layer = STDeformAttn(embed_dim=96, num_heads=6, num_points=12)
        >>> shapes = [(4, 6, 5)]  # T, H, W
        >>> video = torch.rand(1, 120, 96)
        >>> layer(video, reference_grid(shapes), video, shapes).shape
        torch.Size([1, 120, 96])
    """

    _num_axes = 3
    _names = ("value", "spatial_shapes", "padding_mask")

    def __init__(
        self,
        embed_dim: int = 384,
        num_levels: int = 1,
        num_heads: int = 8,
        num_points: int | Sequence[int] = 32,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(embed_dim, num_levels, num_heads, num_points, backend)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[Sequence[int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attends from the queries to the value.

        Args:
            query: [B, Q, C]; carries the position embedding.
            reference_points: Where each query looks, in fractions of the level's size:
                [B, Q, L, 3] points as (x, y, t) or [B, Q, L, 6] boxes as centre then size.
                Without the axis of levels, or with one of size 1, they hold for all of them; a
                batch of 1 holds for all rows. float32 or the projected value's dtype.
            value: [B, S, C], the cells of all levels one after the other, each level row-major
                over (t, y, x); does not carry the position embedding.
            spatial_shapes: One row of Python ints per level, (T, H, W).
            padding_mask: [B, S], bool, True where the value is padding; such rows count as zero.

        Returns:
            [B, Q, C] in the projections' dtype.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A shape, size or device breaks its rule.
        """
        return self._attend(query, reference_points, value, spatial_shapes, padding_mask)


class MSDeformAttn(_DeformAttn):
    """Multi-scale deformable attention over image features, for Deformable DETR and its family.

    Computes what the layer of the same name does in *Deformable DETR* (Zhu et al., ICLR 2021):
    sizes and tensors in the same order, same parameter names and shapes, same initialisation, so
    its state dicts load unchanged. Runs on any device and in any floating dtype. The subclass
    `stdeform.integrations.msda.MSDeformAttn` also has the original's names.

    Under autocast the projections and the value take autocast's dtype; reference points keep
    theirs, and coordinates are computed in float32.

    Args:
        embed_dim: Channels C of query, value and output.
        num_levels: Feature levels L.
        num_heads: Attention heads M; divides `embed_dim`.
        num_points: Sampling points K per head and level; a sequence of L where they differ.
        backend: "auto", "native" or "reference", as in `st_deform_attn_from_offsets`.

    Raises:
        TypeError: A size is not an int.
        ValueError: A size is below 1, `num_heads` does not divide `embed_dim`, or `backend` is
            none of the three.

    Example:
        >>> layer = MSDeformAttn()
        >>> shapes = [(8, 8), (4, 4), (2, 2), (1, 1)]  # H, W
        >>> image = torch.rand(1, 85, 256)
        >>> layer(image, reference_grid(shapes), image, shapes).shape
        torch.Size([1, 85, 256])
    """

    _num_axes = 2
    _names = ("input_flatten", "input_spatial_shapes", "input_padding_mask")

    def __init__(
        self,
        embed_dim: int = 256,
        num_levels: int = 4,
        num_heads: int = 8,
        num_points: int | Sequence[int] = 4,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(embed_dim, num_levels, num_heads, num_points, backend)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Sequence[Sequence[int]] | Tensor,
        input_level_start_index: Sequence[int] | Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attends from the queries to the flattened feature maps.

        Args:
            query: [B, Q, C]; carries the position embedding.
            reference_points: Where each query looks, in fractions of the level's size:
                [B, Q, L, 2] points as (x, y) or [B, Q, L, 4] boxes as centre then size.
                Without the axis of levels, or with one of size 1, they hold for all of them; a
                batch of 1 holds for all rows. float32 or the projected value's dtype.
            input_flatten: The value, [B, S, C], the cells of all levels one after the other,
                each level row-major; does not carry the position embedding.
            input_spatial_shapes: One row (H, W) per level, as Python ints or as an integer
                tensor [L, 2]. One on a device is read once, which waits for the device, and again
                after an in-place operation; in every call, if it was made in inference mode. Under
                torch.compile the reading breaks the graph, unless it captures scalars.
            input_level_start_index: Not needed, because the shapes say it. Checked against them
                where that costs no device synchronisation (Python ints or a CPU tensor, not
                while compiling), otherwise unused.
            input_padding_mask: [B, S], bool, True where the value is padding; such rows count
                as zero.

        Returns:
            [B, Q, C] in the projections' dtype.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: A shape, size, level start or device breaks its rule.
            RuntimeError: `input_spatial_shapes` has to be read while a CUDA graph is captured.
        """
        rows = input_spatial_shapes
        if not isinstance(rows, (list, tuple)):
            rows = _rows_node("input_spatial_shapes", rows, input_flatten)
        return self._attend(
            *(query, reference_points, input_flatten, rows),
            *(input_padding_mask, input_level_start_index),
        )


def _split(projected: Tensor, *sizes: int) -> Tensor:
    """The channels of [B, Q or S, channels] as axes."""
    # Not `unflatten`, with which an export by TorchScript fixes the batch.
    return projected.view(projected.shape[0], projected.shape[1], *sizes)


def _spread(reference_points: Tensor, query: Tensor, num_levels: int) -> Tensor:
    """Reference points for every row of the batch and every level, [B, Q, L, N or 2N]."""
    points = reference_points if reference_points.dim() == 4 else reference_points[:, :, None]
    return points.expand(query.shape[0], -1, num_levels, -1)


@_proxies.recorded
def _spread_node(reference_points: Tensor, query: Tensor, num_levels: int) -> Tensor:
    """`_spread` as a node of torch.fx."""
    return _spread(reference_points, query, num_levels)


@_proxies.recorded
def _rows_node(name: str, spatial_shapes: Any, value: Tensor) -> Any:
    """The rows of a level table, which may be a tensor, as a node of torch.fx."""
    if isinstance(spatial_shapes, Tensor):
        return read_rows(name, spatial_shapes, value)
    return spatial_shapes


def _initial_offsets(num_heads: int, num_points: int, num_axes: int) -> Tensor:
    """The sampling pattern at the start, in cells or frames: [M, K, N] as (x, y, t) or (x, y).

    Head m points along the angle 2 pi m / M, scaled onto the square ring of radius 1 (Deformable
    DETR). In a video the points take turns over 2 s + 1 frames, so that a head sees motion from
    the first step on, and the radius grows by 1 from turn to turn.
    """
    spread = 0
    if num_axes == 3:
        spread = 2 if num_points >= 5 else 1 if num_points >= 3 else 0
    turn = 2 * spread + 1
    points = torch.arange(num_points, dtype=torch.float64, device="cpu")
    angles = torch.arange(num_heads, dtype=torch.float64, device="cpu") * (2 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)  # [M, 2]
    directions /= directions.abs().amax(-1, keepdim=True)
    offsets = directions[:, None] * (points // turn + 1)[:, None]  # [M, K, 2]
    if num_axes == 2:
        return offsets
    steps = (points % turn - spread).expand(num_heads, -1)
    return torch.cat([offsets, steps[..., None]], -1)
