"""Bridge to the compiled extension, the only user of tensor memory, streams and thread counts."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # a documented name

from ._build import read_record
from ._checks import compute_dtype


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("stdeform._C"), ""
    except ModuleNotFoundError:
        why = read_record().no_native or "it was built for another Python"
        return None, f"stdeform has no native core: {why}; mend that and reinstall stdeform"


_C, _why_missing = _load()


class Options:
    """What tests may force; None leaves the choice to the kernel.

    Attributes:
        isa: The instruction set, one of `usable_isas()`.
        num_threads: Instead of `torch.get_num_threads()`, and even where there is less work than
            is worth waking so many threads.
        cuda_tuning: Fields of `Tuning` in csrc/cuda/params.h.
    """

    isa: str | None = None
    num_threads: int | None = None
    cuda_tuning: Mapping[str, int] = MappingProxyType({})


options = Options()


def missing(device_type: str) -> str | None:
    """Why there is no kernel for tensors on `device_type`; None if there is one."""
    if device_type == "cpu":
        return _why_missing if _C is None else None
    if device_type == "meta":  # shapes only: the registered fake serves, built or not
        return None
    if device_type != "cuda":
        return f"no kernel exists for {device_type} yet"
    return _why_missing if _C is None else _missing_on_cuda()


def _missing_on_cuda() -> str | None:
    return _missing_cuda()


# A compiler cannot look into the native core. This is what torch.compiler.assume_constant_result
# does, but that loads the compiler, which takes as long as the import of PyTorch.
_missing_on_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _missing_cuda() -> str | None:
    if torch.version.hip:
        return "this PyTorch is built for ROCm, and the kernels are CUDA's"
    find = getattr(_C, "cuda_devices", None)
    if find is None:
        return f"this stdeform was built without CUDA: {read_record().no_cuda}"
    _, reason = find()
    return reason or None


def usable_isas() -> list[str]:
    """The instruction sets that were compiled and that this processor has, fastest first."""
    return [] if _C is None else list(_C.usable_isas())


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
    if batch and num_queries:
        value = _with_unit_stride(value)
        _run(
            "forward",
            value,
            spatial_shapes,
            to_dlpack(value),
            to_dlpack(positions),
            to_dlpack(scores),
            None if reference_points is None else to_dlpack(reference_points),
            to_dlpack(out),
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
    if grad_out.numel() == 0:
        return tuple(grad.zero_() for grad in empty_grads(inputs, needs))
    # Copies made for the kernel live in these names until it has returned.
    value = _with_unit_stride(value)
    grad_out = _with_unit_stride(grad_out)
    grads = (_cuda_buffers if value.is_cuda else empty_grads)(inputs, needs)
    if any(grad.numel() for grad in grads):
        _run(
            "backward",
            value,
            spatial_shapes,
            to_dlpack(value),
            to_dlpack(positions),
            to_dlpack(scores),
            None if reference_points is None else to_dlpack(reference_points),
            to_dlpack(grad_out),
            *(to_dlpack(grad) if grad.numel() else None for grad in grads),
        )
    return _round_buffers(grads, inputs) if value.is_cuda else grads


def empty_grads(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Uninitialised gradients of the operator's inputs, empty where they are not needed."""
    value = inputs[0]
    assert value is not None
    return tuple(
        value.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape if needed else 0)
        for tensor, needed in zip(inputs, needs, strict=True)
    )


def _cuda_buffers(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """What the CUDA backward writes to: sums in the compute dtype; see csrc/cuda/api.h."""
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
    """The gradients from what the CUDA backward has written."""
    by_head = buffers[1]
    summed = (buffers[0], by_head.sum(2) if by_head.numel() else by_head, *buffers[2:])
    return tuple(
        buffer if tensor is None else buffer.to(tensor.dtype)
        for buffer, tensor in zip(summed, inputs, strict=True)
    )


def _run(name: str, value: Tensor, *arguments: object) -> None:
    """Calls the kernel of the device that `value` is on, one of those that are registered for."""
    is_cuda = value.is_cuda
    reason = missing("cuda" if is_cuda else "cpu")
    if _C is None or reason:
        raise RuntimeError(f"no native kernel for {value.device.type} tensors: {reason}")
    if is_cuda:
        index = value.get_device()
        stream = _current_stream(index)
        forced = dict(options.cuda_tuning)
        if name == "forward":
            _C.cuda_forward(index, stream, forced, *arguments)
        else:
            deterministic = torch.are_deterministic_algorithms_enabled()
            work = _C.CudaBackward(forced, deterministic, *arguments)
            # Lives until the kernels are enqueued; what takes its place waits for them.
            workspace = value.new_empty(work.workspace_bytes, dtype=torch.uint8)
            work.enqueue(index, stream, workspace.data_ptr())
    else:
        run = _C.cpu_forward if name == "forward" else _C.cpu_backward
        threads = options.num_threads
        exact = threads is not None
        run(options.isa or "", threads or torch.get_num_threads(), exact, *arguments)


def _current_stream(index: int) -> int:
    """The current CUDA stream of a device as a number."""
    try:
        # Private to PyTorch, whose generated code calls it too; the public way makes an object.
        stream: int = torch._C._cuda_getCurrentRawStream(index)
    except AttributeError:
        stream = torch.cuda.current_stream(index).cuda_stream
    return stream


def _with_unit_stride(tensor: Tensor) -> Tensor:
    """The kernels read a row of channels as one run of memory; all other strides are free."""
    # The first question is the fastest, and mostly enough.
    if tensor.is_contiguous() or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()
