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


def st_deform_attn(value: Array, shapes: Shapes, locations: Array, weights: Array) -> Array:
    """The result, [B, Q, M * D]."""
    batch, num_queries, num_heads, _, num_points, _ = locations.shape
    out = np.zeros((batch, num_queries, num_heads, value.shape[3]))
    for b, q, m, k in np.ndindex(batch, num_queries, num_heads, num_points):
        start = 0
        for level, shape in enumerate(shapes):
            for row, weight, _ in corners(locations[b, q, m, level, k], shape):
                part = weights[b, q, m, level, k] * weight
                out[b, q, m] += part * value[b, start + row, m]
            start += math.prod(shape)
    return out.reshape(batch, num_queries, -1)


def st_deform_attn_grads(
    grad_out: Array, value: Array, shapes: Shapes, locations: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """The gradients of value, locations and weights."""
    batch, num_queries, num_heads, _, num_points, _ = locations.shape
    grads = grad_out.reshape(batch, num_queries, num_heads, -1)
    grad_value, grad_locations, grad_weights = map(np.zeros_like, (value, locations, weights))
    for b, q, m, k in np.ndindex(batch, num_queries, num_heads, num_points):
        start = 0
        for level, shape in enumerate(shapes):
            sample = b, q, m, level, k
            for row, weight, slopes in corners(locations[sample], shape):
                match = float(grads[b, q, m] @ value[b, start + row, m])
                grad_value[b, start + row, m] += weights[sample] * weight * grads[b, q, m]
                grad_weights[sample] += weight * match
                grad_locations[sample] += weights[sample] * match * np.array(slopes)
            start += math.prod(shape)
    return grad_value, grad_locations, grad_weights


def st_deform_attn_from_offsets(
    value: Array, shapes: Shapes, points: Array, offsets: Array, logits: Array
) -> Array:
    """The result of the fused form, [B, Q, M * D]."""
    return st_deform_attn(value, shapes, _locations(shapes, points, offsets), _softmax(logits))


def st_deform_attn_from_offsets_grads(
    grad_out: Array, value: Array, shapes: Shapes, points: Array, offsets: Array, logits: Array
) -> tuple[Array, Array, Array, Array]:
    """The gradients of value, reference points, offsets and logits."""
    weights = _softmax(logits)
    grad_value, grad_locations, grad_weights = st_deform_attn_grads(
        grad_out, value, shapes, _locations(shapes, points, offsets), weights
    )
    num_axes = offsets.shape[-1]
    grad_points, grad_offsets, grad_logits = map(np.zeros_like, (points, offsets, logits))
    for b, q, m in np.ndindex(logits.shape[:3]):
        head = weights[b, q, m]
        mean = float((head * grad_weights[b, q, m]).sum())
        grad_logits[b, q, m] = head * (grad_weights[b, q, m] - mean)
        for level, k in np.ndindex(logits.shape[3:]):
            step = grad_locations[b, q, m, level, k]
            point = points[b, q, level]
            grad_points[b, q, level, :num_axes] += step
            if len(point) == num_axes:
                grad_offsets[b, q, m, level, k] = step / np.array(shapes[level][::-1])
            else:
                unit = 0.5 / offsets.shape[4]
                grad_offsets[b, q, m, level, k] = step * unit * point[num_axes:]
                grad_points[b, q, level, num_axes:] += step * unit * offsets[b, q, m, level, k]
    return grad_value, grad_points, grad_offsets, grad_logits


def _locations(shapes: Shapes, points: Array, offsets: Array) -> Array:
    num_points, num_axes = offsets.shape[4:]
    locations = np.empty_like(offsets)
    for sample in np.ndindex(offsets.shape[:5]):
        b, q, _, level, _ = sample
        point = points[b, q, level]
        if len(point) == num_axes:
            step = offsets[sample] / np.array(shapes[level][::-1])
        else:
            step = offsets[sample] / num_points * point[num_axes:] / 2
        locations[sample] = point[:num_axes] + step
    return locations


def _softmax(logits: Array) -> Array:
    weights = np.empty_like(logits)
    for head in np.ndindex(logits.shape[:3]):
        powers = np.exp(logits[head] - logits[head].max())
        weights[head] = powers / powers.sum()
    return weights
