"""What both forms of an exported operator need: the samples of all levels in one list of P."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import compute_dtype


@dataclass(frozen=True)
class Samples:
    """The samples of a call of the registered operator; see `stdeform._ops`.

    Attributes:
        shapes: L rows of N sizes, (T, H, W) or (H, W): ints, symbols of a compiler, or the 0-d
            tensors of `torch.jit.trace`.
        points: K of each level; P is their sum.
        references: [B, Q, L, N or 2N]; None if `positions` are locations.
        positions: Locations or offsets, [B, Q, M, P, N].
        weights: Attention weights, [B, Q, M, P].
    """

    shapes: Sequence[Sequence[int]]
    points: Sequence[int]
    references: Tensor | None
    positions: Tensor
    weights: Tensor

    @classmethod
    def of_call(
        cls,
        value: Tensor,
        sizes: Sequence[int],
        reference_points: Tensor | None,
        positions: Tensor,
        scores: Tensor,
        num_points: Sequence[int],
    ) -> Samples:
        """From the arguments of the registered operator."""
        num_axes = int(positions.shape[-1])
        shapes = [sizes[start : start + num_axes] for start in range(0, len(sizes), num_axes)]
        if not num_points:
            num_points = [int(positions.shape[4])] * len(shapes)
            positions, scores = positions.flatten(3, 4), scores.flatten(3)
        real = compute_dtype(value.dtype)
        weights = scores.to(real)
        if reference_points is not None:
            reference_points, weights = reference_points.to(real), weights.softmax(-1)
        return cls(shapes, num_points, reference_points, positions.to(real), weights)

    def coordinates(self, scale: Tensor, shift: float, step: Tensor | None) -> Tensor:
        """`scale * location + shift` of every sample, [B, Q, M, P, N]; not finite if that is not.

        Args:
            scale: Of each level and axis in the order (x, y, t), [L, N].
            shift: The same for all.
            step: The length of one cell in these coordinates, scale / size, [L, N]; None for 1.
        """
        if self.references is None:
            return self.positions * self.spread(scale, 0) + shift
        num_axes = self.positions.shape[-1]
        centres = self.spread(self.references[..., :num_axes] * scale + shift, 2)[:, :, None]
        if self.references.shape[-1] > num_axes:
            edges = self.table([[points] for points in self.points], scale.dtype)
            step = self.references[..., num_axes:] * (scale * (0.5 / edges))
            return centres + self.positions * self.spread(step, 2)[:, :, None]
        if step is None:
            return centres + self.positions
        return centres + self.positions * self.spread(step, 0)

    def spread(self, of_levels: Tensor, axis: int) -> Tensor:
        """What belongs to a level, of each sample: the axis of L becomes one of P."""
        if len(set(self.points)) == 1:
            return of_levels.repeat_interleave(self.points[0], axis)
        each = zip(of_levels.unsqueeze(axis + 1).unbind(axis), self.points, strict=True)
        return torch.cat([level.repeat_interleave(points, axis) for level, points in each], axis)

    def table(self, rows: Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
        """Numbers of each level as a tensor, which an exported graph computes where they vary."""
        one = self.weights.new_ones((), dtype=torch.int64)
        table = torch.stack([torch.stack([one * number for number in row]) for row in rows])
        return table.to(dtype)
