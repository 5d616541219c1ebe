"""The operator and its gradients as scalar loops in NumPy; shares no code with the package.

One sample at a time: find its corners, weigh them, add them up. Everything is float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shapes = Sequence[Sequence[int]]
Points = Sequence[int] | None  # of each level; None where there is an axis for levels


def corners(
    location: Array, shape: Sequence[int]
) -> Iterator[tuple[int, float, tuple[float, ...]]]:
    """Row within the level, weight, and the weight's slope along each of (x, y, t)."""
    sizes = tuple(reversed(shape))  # (x, y, t), as the location
    if not all(math.isfinite(x) for x in location):
        return
    cells = [x * size - 0.5 for x, size in zip(location, sizes, strict=True)]
    for steps in itertools.product((0, 1), repeat=len(sizes)):
        row, stride, parts, slopes = 0, 1, [], []
        for cell, step, size in zip(cells, steps, sizes, strict=True):
            index = math.floor(cell) + step
            if not 0 <= index < size:
                break
            row += index * stride
            stride *= size
            fraction = cell - math.floor(cell)
            parts.append(fraction if step else 1 - fraction)
            slopes.append(float(size) if step else -float(size))
        else:
            others = (
                slope * math.prod(parts[:axis] + parts[axis + 1 :])
                for axis, slope in enumerate(slopes)
            )
            yield row, math.prod(parts), tuple(others)


def st_deform_attn(
    value: Array, shapes: Shapes, locations: Array, weights: Array, num_points: Points = None
) -> Array:
    """The result, [B, Q, M * D]."""
    levels = _levels(shapes, weights, num_points)
    samples = _listed(locations, num_points), _listed(weights, num_points)
    out = np.zeros((*locations.shape[:3], value.shape[3]))
    for b, q, m, i in np.ndindex(samples[1].shape):
        location, weight = (array[b, q, m, i] for array in samples)
        for row, part, _ in corners(location, shapes[levels[i]]):
            out[b, q, m] += weight * part * value[b, _start(shapes, levels[i]) + row, m]
    return out.reshape(*out.shape[:2], -1)


def st_deform_attn_grads(
    grad_out: Array,
    value: Array,
    shapes: Shapes,
    locations: Array,
    weights: Array,
    num_points: Points = None,
) -> tuple[Array, Array, Array]:
    """The gradients of value, locations and weights."""
    levels = _levels(shapes, weights, num_points)
    samples = _listed(locations, num_points), _listed(weights, num_points)
    grads = grad_out.reshape(*locations.shape[:3], -1)
    grad_value, grad_locations, grad_weights = map(np.zeros_like, (value, *samples))
    for sample in np.ndindex(samples[1].shape):
        b, q, m, i = sample
        location, weight = (array[sample] for array in samples)
        for row, part, slopes in corners(location, shapes[levels[i]]):
            cell = b, _start(shapes, levels[i]) + row, m
            match = float(grads[b, q, m] @ value[cell])
            grad_value[cell] += weight * part * grads[b, q, m]
            grad_weights[sample] += part * match
            grad_locations[sample] += weight * match * np.array(slopes)
    return grad_value, grad_locations.reshape(locations.shape), grad_weights.reshape(weights.shape)


def st_deform_attn_from_offsets(
    value: Array,
    shapes: Shapes,
    points: Array,
    offsets: Array,
    logits: Array,
    num_points: Points = None,
) -> Array:
    """The result of the fused form, [B, Q, M * D]."""
    locations = _locations(shapes, points, offsets, num_points)
    return st_deform_attn(value, shapes, locations, _softmax(logits), num_points)


def st_deform_attn_from_offsets_grads(
    grad_out: Array,
    value: Array,
    shapes: Shapes,
    points: Array,
    offsets: Array,
    logits: Array,
    num_points: Points = None,
) -> tuple[Array, Array, Array, Array]:
    """The gradients of value, reference points, offsets and logits."""
    weights = _softmax(logits)
    locations = _locations(shapes, points, offsets, num_points)
    grad_value, grad_locations, grad_weights = st_deform_attn_grads(
        grad_out, value, shapes, locations, weights, num_points
    )
    means = (weights * grad_weights).sum(tuple(range(3, weights.ndim)), keepdims=True)
    grad_logits = weights * (grad_weights - means)
    levels, num_axes = _levels(shapes, logits, num_points), offsets.shape[-1]
    steps, listed = _listed(grad_locations, num_points), _listed(offsets, num_points)
    grad_points, grad_offsets = np.zeros_like(points), np.zeros_like(listed)
    for sample in np.ndindex(steps.shape[:-1]):
        b, q, _, i = sample
        level, step = levels[i], steps[sample]
        point = points[b, q, level]
        grad_points[b, q, level, :num_axes] += step
        if len(point) == num_axes:
            grad_offsets[sample] = step / np.array(shapes[level][::-1])
        else:
            unit = 0.5 / levels.count(level)
            grad_offsets[sample] = step * unit * point[num_axes:]
            grad_points[b, q, level, num_axes:] += step * unit * listed[sample]
    return grad_value, grad_points, grad_offsets.reshape(offsets.shape), grad_logits


def _locations(shapes: Shapes, points: Array, offsets: Array, num_points: Points) -> Array:
    levels, num_axes = _levels(shapes, offsets[..., 0], num_points), offsets.shape[-1]
    listed = _listed(offsets, num_points)
    locations = np.empty_like(listed)
    for sample in np.ndindex(listed.shape[:-1]):
        b, q, _, i = sample
        point = points[b, q, levels[i]]
        if len(point) == num_axes:
            step = listed[sample] / np.array(shapes[levels[i]][::-1])
        else:
            step = listed[sample] / levels.count(levels[i]) * point[num_axes:] / 2
        locations[sample] = point[:num_axes] + step
    return locations.reshape(offsets.shape)


def _levels(shapes: Shapes, scores: Array, num_points: Points) -> list[int]:
    """The level of each of the P samples of a query and head."""
    counts = num_points or (scores.shape[4],) * len(shapes)
    return [level for level, count in enumerate(counts) for _ in range(count)]


def _listed(samples: Array, num_points: Points) -> Array:
    """[B, Q, M, L, K, ...] or [B, Q, M, P, ...] as the latter."""
    return samples if num_points else samples.reshape(*samples.shape[:3], -1, *samples.shape[5:])


def _start(shapes: Shapes, level: int) -> int:
    """The first row of a level."""
    return sum(math.prod(shape) for shape in shapes[:level])


def _softmax(logits: Array) -> Array:
    weights = np.empty_like(logits)
    for head in np.ndindex(logits.shape[:3]):
        powers = np.exp(logits[head] - logits[head].max())
        weights[head] = powers / powers.sum()
    return weights
