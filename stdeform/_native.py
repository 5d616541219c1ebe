"""Bridge to the compiled extension, the only user of tensor memory, streams and thread counts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ._build import read_record
from ._checks import compute_dtype

try:
    import stdeform._C

    _C = stdeform._C
    _why_missing = ""
except ModuleNotFoundError:
    _C = None  # type: ignore[assignment]
    _reason = read_record().no_native or "it was built for another Python"
    _why_missing = f"stdeform has no native core: {_reason}; mend that and reinstall stdeform"


class Options:
    """Overrides for tests and benchmarks; None leaves the choice to the kernel.

    Attributes:
        isa: The instruction set, one of `usable_isas()`.
        num_threads: Replaces `torch.get_num_threads()`; all of these threads run, even if there is
            too little work for them.
        cuda_tuning: Fields of `Tuning` in csrc/cuda/params.h.
    """

    isa: str | None = None
    num_threads: int | None = None
    cuda_tuning: Mapping[str, int] = MappingProxyType({})


options = Options()


def missing(device_type: str) -> str | None:
    """Returns why there is no kernel for tensors on `device_type`, or None if there is one."""
    if device_type == "cpu":
        return _why_missing if _C is None else None
    if device_type == "meta":  # shapes only: the registered fake kernel needs no extension
        return None
    if device_type != "cuda":
        return f"stdeform has kernels for cpu and cuda tensors, none for {device_type}"
    if torch.version.hip:
        return "this PyTorch is built for ROCm, and stdeform's CUDA kernels run on NVIDIA GPUs only"
    return _why_missing if _C is None else _missing_on_cuda()


def _missing_on_cuda() -> str | None:
    return _missing_cuda()


# torch.compile cannot trace into the extension. torch.compiler.assume_constant_result sets the same
# attribute, but loads the compiler, which takes as long as the import of PyTorch.
_missing_on_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _missing_cuda() -> str | None:
    find = getattr(_C, "cuda_devices", None)
    if find is None:
        return f"this stdeform was built without CUDA: {read_record().no_cuda}"
    _, reason = find()
    return reason or None


def usable_isas() -> list[str]:
    """The instruction sets that were compiled and that this processor has, fastest first."""
    return [] if _C is None else list(_C.usable_isas())


def thread_pool() -> str:
    """The CPU kernels' threads: the file of PyTorch's OpenMP runtime, or "std::thread"."""
    return "" if _C is None else Path(_C.openmp_runtime()).name or "std::thread"


def forward(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Sequence[int],  # L * N sizes
    reference_points: Tensor | None,  # [B, Q, L, N or 2N], or None: positions are locations
    positions: Tensor,  # [B, Q, M, L, K, N] or [B, Q, M, P, N]: locations or offsets
    scores: Tensor,  # [B, Q, M, L, K] or [B, Q, M, P]: weights or logits
    num_points: Sequence[int],  # of each level; none where positions have an axis for levels
) -> Tensor:  # [B, Q, M * D]
    """Runs the forward kernel of the tensors' device."""
    batch, _, num_heads, head_dim = value.shape
    num_queries = positions.shape[1]
    out = value.new_empty(batch, num_queries, num_heads * head_dim)
    if batch and num_queries:
        value = _with_unit_stride(value)
        if not num_points and not (positions.is_contiguous() and scores.is_contiguous()):
            positions, scores = _with_joined_levels(positions), _with_joined_levels(scores)
        inputs = (spatial_shapes, value, positions, scores, reference_points, num_points)
        if _C is None or value.is_cuda:
            _require(value)
            index = value.get_device()
            _C.cuda_forward(index, _current_stream(index), dict(options.cuda_tuning), inputs, out)
        else:
            isa, threads, use_all = _cpu_options()
            _C.cpu_forward(isa, threads, use_all, inputs, out)
    return out


def backward(
    grad_out: Tensor,  # [B, Q, M * D]
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    num_points: Sequence[int],
    needs: Sequence[bool],  # of value, reference_points, positions, scores
) -> tuple[Tensor, ...]:
    """Runs the backward kernel; a gradient that is not requested has no elements."""
    inputs = (value, reference_points, positions, scores)
    if grad_out.numel() == 0:
        return tuple(grad.zero_() for grad in empty_grads(inputs, needs))
    # Copies made for the kernel live in these names until it has returned.
    value = _with_unit_stride(value)
    grad_out = _with_unit_stride(grad_out)
    is_cuda = value.is_cuda
    grads = (_cuda_buffers if is_cuda else empty_grads)(inputs, needs)
    if not num_points and not (positions.is_contiguous() and scores.is_contiguous()):
        positions, scores = _with_joined_levels(positions), _with_joined_levels(scores)
    if any(grad.numel() for grad in grads):
        arrays = (spatial_shapes, value, positions, scores, reference_points, num_points)
        if _C is None or is_cuda:
            _require(value)
            _cuda_backward(arrays, grad_out, grads)
        else:
            isa, threads, use_all = _cpu_options()
            _C.cpu_backward(isa, threads, use_all, arrays, grad_out, grads)
    return _round_buffers(grads, inputs) if is_cuda else grads


def empty_grads(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Uninitialised gradients of the operator's inputs, empty where they are not needed."""
    value = inputs[0]
    assert value is not None
    return tuple(
        [
            # Faster than `new_empty` of a shape, of which PyTorch reads every number.
            torch.empty_like(tensor, memory_format=torch.contiguous_format)
            if needed and tensor is not None
            else (value if tensor is None else tensor).new_empty(0)
            for tensor, needed in zip(inputs, needs, strict=True)
        ]
    )


def _cuda_buffers(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Allocates what the CUDA backward writes, in the compute dtype; see csrc/cuda/api.h."""
    value, reference_points, positions, scores = inputs
    assert value is not None
    assert positions is not None
    assert scores is not None
    real = compute_dtype(value.dtype)
    # Three tensors: the results of an operator must not share memory.
    grad_value, by_head, grad_scores = (value.new_empty(0) for _ in range(3))
    if needs[0]:
        grad_value = value.new_empty(value.shape, dtype=real)
    if needs[1] and reference_points is not None:
        batch, num_queries, *rest = reference_points.shape
        shape = (batch, num_queries, value.shape[2], *rest)
        by_head = value.new_empty(shape, dtype=real)
    if needs[3]:
        grad_scores = scores.new_empty(scores.shape, dtype=real)
    return grad_value, by_head, positions.new_empty(positions.shape if needs[2] else 0), grad_scores


def _round_buffers(
    buffers: tuple[Tensor, ...], inputs: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Turns the outputs of the CUDA backward into gradients."""
    by_head = buffers[1]
    summed = (buffers[0], by_head.sum(2) if by_head.numel() else by_head, *buffers[2:])
    return tuple(
        buffer if tensor is None else buffer.to(tensor.dtype)
        for buffer, tensor in zip(summed, inputs, strict=True)
    )


def _require(value: Tensor) -> None:
    """Raises RuntimeError if there is no kernel: operators can be called without functional.py."""
    device_type = "cuda" if value.is_cuda else "cpu"
    if reason := missing(device_type):
        raise RuntimeError(f"no native kernel for {device_type} tensors: {reason}")


def _cpu_options() -> tuple[str, int, bool]:
    """Instruction set ("": the fastest), number of threads, and whether all of them must run."""
    threads = options.num_threads
    return options.isa or "", threads or torch.get_num_threads(), threads is not None


def _current_stream(index: int) -> int:
    """The current CUDA stream of a device as a number."""
    try:
        # Private, but PyTorch's generated code calls it too; the public function makes an object.
        stream: int = torch._C._cuda_getCurrentRawStream(index)
    except AttributeError:
        stream = torch.cuda.current_stream(index).cuda_stream
    return stream


def _cuda_backward(inputs: tuple[Any, ...], grad_out: Tensor, grads: tuple[Tensor, ...]) -> None:
    """Enqueues the CUDA backward, with its workspace from PyTorch's allocator."""
    value = inputs[1]
    deterministic = torch.are_deterministic_algorithms_enabled()
    work = _C.CudaBackward(dict(options.cuda_tuning), deterministic, inputs, grad_out, grads)
    # Freed once the kernels are enqueued: memory of the same stream is reused in stream order.
    workspace = value.new_empty(work.workspace_bytes, dtype=torch.uint8)
    index = value.get_device()
    work.enqueue(index, _current_stream(index), workspace.data_ptr())


def _with_joined_levels(tensor: Tensor) -> Tensor:
    """Copies [B, Q, M, L, K, ...] unless all points are equally far apart in memory."""
    if tensor.dim() < 5 or tensor.stride(3) == tensor.shape[4] * tensor.stride(4):
        return tensor
    return tensor.contiguous()


def _with_unit_stride(tensor: Tensor) -> Tensor:
    """Copies a tensor unless its channels are contiguous; all other strides are free."""
    # The first test is the fastest, and mostly true.
    if tensor.is_contiguous() or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()
