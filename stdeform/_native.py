"""The way down to the native core: addresses, strides, threads. Nothing else reads `data_ptr`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ._build import read_record


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("stdeform._C"), ""
    except ModuleNotFoundError:
        why = read_record().no_native or "it was built for another Python"
        return None, f"stdeform has no native core: {why}; mend that and reinstall stdeform"


_C, _why_missing = _load()
_DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


class Options:
    """What tests may force; None leaves the choice to the kernel.

    Attributes:
        simd_level: One of `simd_levels()`.
        num_threads: Instead of `torch.get_num_threads()`, and even where there is less work than
            is worth waking so many threads.
    """

    simd_level: str | None = None
    num_threads: int | None = None


options = Options()


def missing(device_type: str) -> str | None:
    """Why there is no kernel for tensors on `device_type`; None if there is one."""
    if device_type == "meta":  # shapes only: the registered fake serves, built or not
        return None
    if device_type != "cpu":
        return f"no kernel exists for {device_type} yet"
    return None if _C is not None else _why_missing


def simd_levels() -> list[str]:
    """The SIMD levels that were compiled and that this processor has, best first."""
    return [] if _C is None else list(_C.simd_levels())


def forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[int],  # L * N sizes
    reference_points: Tensor | None,  # [B, Q, L, N or 2N], or None: positions are locations
    positions: Tensor,  # [B, Q, M, L, K, N] locations or offsets
    scores: Tensor,  # [B, Q, M, L, K] weights or logits
) -> Tensor:  # [B, Q, M * D]
    """Runs the forward kernel of the device the tensors are on."""
    batch, _, num_heads, head_dim = value.shape
    num_queries = positions.shape[1]
    out = value.new_empty(batch, num_queries, num_heads * head_dim)
    if out.numel():
        value = _with_unit_stride(value)
        _core().forward(
            *_problem(value, spatial_shapes, positions, scores, reference_points),
            _array(out.view(batch, num_queries, num_heads, head_dim)),
        )
    return out


def backward(
    grad_out: Tensor,  # [B, Q, M * D]
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    needs: Sequence[bool],  # of value, reference_points, positions, scores
) -> tuple[Tensor, ...]:
    """Runs the backward kernel; a gradient that is not needed comes back with no elements."""
    inputs = (value, reference_points, positions, scores)
    grads = empty_grads(inputs, needs)
    if grad_out.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    if any(grad.numel() for grad in grads):
        # Copies made for the kernel live in these names until it has returned.
        value = _with_unit_stride(value)
        rows = _with_unit_stride(grad_out.unflatten(2, (value.shape[2], value.shape[3])))
        _core().backward(
            *_problem(value, spatial_shapes, positions, scores, reference_points),
            _array(rows),
            *(_array(grad) if grad.numel() else None for grad in grads),
        )
    return grads


def empty_grads(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Room for the gradients of the operator's inputs; no elements where nobody asked."""
    value = inputs[0]
    assert value is not None
    return tuple(
        value.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape if needed else 0)
        for tensor, needed in zip(inputs, needs, strict=True)
    )


def _core() -> ModuleType:
    if _C is None:
        raise RuntimeError(f"no native kernel for cpu tensors: {_why_missing}")
    return _C


def _problem(
    value: Tensor,
    spatial_shapes: Sequence[int],
    positions: Tensor,
    scores: Tensor,
    reference_points: Tensor | None,
) -> tuple[object, ...]:
    return (
        options.simd_level or "",
        options.num_threads or torch.get_num_threads(),
        options.num_threads is not None,
        list(spatial_shapes),
        _array(value),
        _array(positions),
        _array(scores),
        None if reference_points is None else _array(reference_points),
    )


def _array(tensor: Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), _DTYPE_CODES[tensor.dtype], tuple(tensor.shape), tensor.stride()


def _with_unit_stride(tensor: Tensor) -> Tensor:
    """The kernels read a row of channels as one run of memory; all other strides are free."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
