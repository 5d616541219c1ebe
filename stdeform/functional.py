"""Public operators: validate the arguments, select the backend, dispatch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks, _dispatch, _native, _proxies, _tracing
from ._checks import BACKENDS

__all__ = ["Backend", "resolve_backend", "st_deform_attn", "st_deform_attn_from_offsets"]

Backend = Literal["auto", "native", "reference"]
_CAST = (torch.float32, torch.float16, torch.bfloat16)  # what autocast casts
_warned: set[str] = set()  # device types with a reported fallback


def st_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    num_points: Sequence[int] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Spatio-temporal deformable attention over given locations and weights.

        out[b, q, m] = sum_{l, k} attention_weights[b, q, m, l, k]
                                  * V_l[b, m](sampling_locations[b, q, m, l, k])

    where V_l(p) interpolates level l linearly at p, along N axes: t, (x, y) or (x, y, t).
    Equation 2 of *Deformable VisTR* (Yarram et al., ICASSP 2022), extended to levels; with N = 2 it
    is the multi-scale deformable attention of *Deformable DETR* (Zhu et al.,
    ICLR 2021).

    Coordinates are fractions of the level's size in the order (x, y, t); cell i of an axis has
    its centre at (i + 0.5) / size. Corners outside the level contribute zero and get no
    gradient; a NaN or infinite coordinate contributes zero. Coordinates and sums are computed in
    float32 (float64 for a float64 value). The forward is deterministic; the CPU backward is
    bitwise equal for any number of threads, the CUDA backward bitwise repeatable under
    `torch.use_deterministic_algorithms(True)`. Differentiable any number of times in all three
    tensors.

    Under autocast of the value's device the value is cast to autocast's dtype, and so the result
    has it; any other tensor of another half dtype is cast to float32. A float64 value stays.

    Args:
        value: What is read, [B, S, M, D]; S cells of all levels one after the other, each level
            row-major. float64, float32, float16 or bfloat16; any strides.
        spatial_shapes: One row of Python ints per level, (T, H, W), (H, W) or (T,).
        sampling_locations: Where each point reads, [B, Q, M, L, K, N] as (x, y, t), (x, y) or (t,)
            in fractions of the level's size. float32 or value's dtype.
        attention_weights: The points' weights, [B, Q, M, L, K], used as they are. float32 or
            value's dtype.
        num_points: The points of each level, L ints of at least 1, where they differ. Locations are
            then [B, Q, M, P, N] and weights [B, Q, M, P], P the sum of these, the points of level 0
            first.
        backend: "native" for the compiled kernel, "reference" for plain PyTorch, "auto" for the
            kernel where it was built and otherwise the reference with one warning.

    Returns:
        [B, Q, M * D] in value's dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, size, device or `backend` breaks its rule.
        RuntimeError: `backend="native"` where no kernel was built.

    Example:
        >>> value = torch.rand(1, 4 * 6 * 5, 8, 16)  # T, H, W = 4, 6, 5
        >>> locations = torch.rand(1, 100, 8, 1, 32, 3)
        >>> weights = torch.rand(1, 100, 8, 1, 32).softmax(-1)
        >>> st_deform_attn(value, [(4, 6, 5)], locations, weights).shape
        torch.Size([1, 100, 128])
    """
    if _dispatch.may_autocast() and _autocasts(value):
        value, sampling_locations, attention_weights = _as_autocast_does(
            value, sampling_locations, attention_weights
        )
    try:
        sizes = _checks.check_attention(
            value, spatial_shapes, sampling_locations, attention_weights, num_points
        )
    except TypeError as error:
        node: Tensor = _proxies.as_node(
            *(error, st_deform_attn, value, spatial_shapes, sampling_locations, attention_weights),
            num_points=num_points,
            backend=backend,
        )
        return node
    if len(sizes) == len(spatial_shapes):  # N = 1
        sizes, sampling_locations = as_images(sizes, sampling_locations)
    return attend(
        value, sizes, None, sampling_locations, attention_weights, num_points or (), backend
    )


def st_deform_attn_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    num_points: Sequence[int] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Spatio-temporal deformable attention from what a layer predicts; the fused form.

    `attention_weights = softmax(attention_logits)` over the L * K points of a head, and
    `p = reference + offset / size` for points, `p = centre + offset / K * box / 2` for boxes;
    then as `st_deform_attn`. The kernels compute both inside, forward and backward, so neither
    locations nor weights are ever stored.

    Autocast casts as for `st_deform_attn`.

    Args:
        value: As in `st_deform_attn`, [B, S, M, D].
        spatial_shapes: One row of Python ints per level, (T, H, W), (H, W) or (T,).
        reference_points: Where each query looks on each level, [B, Q, L, N] points, or
            [B, Q, L, 2N] boxes as centre then size, in fractions of the level's size, order
            (x, y, t). float32 or value's dtype.
        sampling_offsets: [B, Q, M, L, K, N] as (x, y, t): in cells of the level for points; for
            boxes an offset of K or -K is an edge of the box. float32 or value's dtype.
        attention_logits: [B, Q, M, L, K], before the softmax. float32 or value's dtype.
        num_points: As in `st_deform_attn`; K of a box is then that of its level.
        backend: As in `st_deform_attn`.

    Returns:
        [B, Q, M * D] in value's dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, size, device or `backend` breaks its rule.
        RuntimeError: `backend="native"` where no kernel was built.

    Example:
        >>> value = torch.rand(1, 4 * 6 * 5, 8, 16)
        >>> points = torch.rand(1, 100, 1, 3)
        >>> offsets = torch.randn(1, 100, 8, 1, 32, 3)
        >>> logits = torch.randn(1, 100, 8, 1, 32)
        >>> st_deform_attn_from_offsets(value, [(4, 6, 5)], points, offsets, logits).shape
        torch.Size([1, 100, 128])
    """
    if _dispatch.may_autocast() and _autocasts(value):
        value, reference_points, sampling_offsets, attention_logits = _as_autocast_does(
            value, reference_points, sampling_offsets, attention_logits
        )
    try:
        sizes = _checks.check_attention_from_offsets(
            value, spatial_shapes, reference_points, sampling_offsets, attention_logits, num_points
        )
    except TypeError as error:
        node: Tensor = _proxies.as_node(
            *(error, st_deform_attn_from_offsets, value, spatial_shapes),
            *(reference_points, sampling_offsets, attention_logits),
            num_points=num_points,
            backend=backend,
        )
        return node
    if len(sizes) == len(spatial_shapes):  # N = 1
        sizes, sampling_offsets = as_images(sizes, sampling_offsets, 0.0)
        # A centre of 0.5 along y, and a box of any height.
        reference_points = F.pad(reference_points[..., None], (0, 1), value=0.5).flatten(-2)
    return attend(
        value,
        sizes,
        reference_points,
        sampling_offsets,
        attention_logits,
        num_points or (),
        backend,
    )


def attend(
    value: Tensor,  # [B, S, M, D]
    sizes: Sequence[int],  # the L * N sizes of the level table
    reference_points: Tensor | None,  # None: positions are locations, scores weights
    positions: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]
    scores: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]
    num_points: Sequence[int],  # of each level; none where positions have an axis for levels
    backend: Backend,
) -> Tensor:  # [B, Q, M * D]
    """Either form on arguments that have been checked; the layers call it too."""
    if resolve_backend(_device_type(value), backend) == "reference":
        return _tracing.attend(False, value, sizes, reference_points, positions, scores, num_points)
    return _dispatch.attend(value, sizes, reference_points, positions, scores, num_points)


def _autocasts(value: Tensor) -> bool:
    """Whether autocast is on for the device of a value that it casts."""
    if not isinstance(value, Tensor):
        return False
    device_type = _device_type(value)
    if device_type not in ("cpu", "cuda") and not torch.amp.is_autocast_available(device_type):
        return False
    return torch.is_autocast_enabled(device_type) and value.dtype in _CAST


def _as_autocast_does(value: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The value in autocast's dtype, and the others in that or float32."""
    dtype = torch.get_autocast_dtype(_device_type(value))
    return value.to(dtype), *(
        other.float()
        if isinstance(other, Tensor) and other.dtype in _CAST and other.dtype is not dtype
        else other
        for other in others
    )


def as_images(
    lengths: Sequence[int], positions: Tensor, y: float = 0.5
) -> tuple[list[int], Tensor]:
    """Levels and positions of sequences as those of images of one row, to the same bits.

    The kernels know two and three axes.
    """
    return [size for length in lengths for size in (1, length)], F.pad(positions, (0, 1), value=y)


def resolve_backend(device_type: str, backend: Backend = "auto") -> Literal["native", "reference"]:
    """The backend for tensors on `device_type`: "native" or "reference".

    "auto" warns once per device type when it has to take the reference.

    Raises:
        ValueError: `backend` is not one of "auto", "native", "reference".
        RuntimeError: `backend="native"` where no kernel was built.
    """
    if backend == "reference":
        return "reference"
    missing = _native.missing(device_type)
    if missing is None and backend in BACKENDS:
        return "native"
    if backend == "native":
        raise RuntimeError(f"no native kernel for {device_type} tensors: {missing}")
    _checks.check_backend(backend)
    _warn_once(device_type, missing)
    return "reference"


def _warn_once(device_type: str, missing: str | None) -> None:
    if device_type in _warned:
        return
    _warned.add(device_type)
    warnings.warn(
        f"stdeform: {device_type} tensors take the slow reference: {missing}. The results are the "
        f"same: plain PyTorch computes them on {device_type}, in more time and memory. Shown once; "
        'not at all with backend="reference".',
        RuntimeWarning,
        stacklevel=5,
    )


# A compiler cannot follow a warning; it calls this while it makes the graph, and takes the result
# for a constant. See `_native._missing_on_cuda`.
_warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _device_type(tensor: Tensor) -> str:
    # `device.type` makes a new string at each reading, slower than all of `resolve_backend`.
    return "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else tensor.device.type
