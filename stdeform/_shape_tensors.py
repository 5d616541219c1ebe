"""Level tables in tensors: a table on a device is read once, however many layers use it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.weak import WeakTensorKeyDictionary

from .shapes import product

Rows = tuple[tuple[int, ...], ...]

# Of tensors on a device: the version that was read, and its rows. A tensor that is gone leaves.
_known = WeakTensorKeyDictionary()


def read_rows(name: str, spatial_shapes: Tensor, value: Tensor) -> Rows:
    """A level table in a tensor as Python ints.

    To read a tensor on a device, the host waits for the device. So it is read once per tensor and
    version: again after an in-place operation, not for another layer. What PyTorch does not count
    as a new version is not seen: writes through `tensor.data`, another library or a replayed CUDA
    graph. A tensor on the CPU is read in every call, and so is one that was made in inference mode,
    because it has no version.

    A compiler cannot read it and runs the reading between two graphs, unless it is set to capture
    scalars, as `torch.export` does; then the sizes are symbols.

    Args:
        name: The name of the table in messages.
        spatial_shapes: Integers, [L, N].
        value: What the table describes, [B, S, ...]; only a compiler has to know.

    Raises:
        TypeError: It does not hold integers, or holds no numbers at all, on the meta device.
        ValueError: It has not 2 axes.
        RuntimeError: It would have to be read while a CUDA graph is captured.
    """
    dtype = spatial_shapes.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        raise TypeError(f"{name} must hold integers, got {dtype}")
    if spatial_shapes.dim() != 2:
        raise ValueError(f"{name} must have shape [L, N], got {list(spatial_shapes.shape)}")
    if not is_compiling():
        return _remembered(name, spatial_shapes)
    if type(spatial_shapes) is not Tensor or _captures_scalars():
        return _symbols(spatial_shapes, value)
    between_graphs: Rows = _between_graphs(name, spatial_shapes)
    return between_graphs


def on_device(tensor: Tensor) -> bool:
    """Whether the host has to wait to read it."""
    return tensor.is_cuda or not tensor.is_cpu


def _remembered(name: str, spatial_shapes: Tensor) -> Rows:
    if not on_device(spatial_shapes):
        return _read(spatial_shapes)
    has_version = not spatial_shapes.is_inference()
    version = spatial_shapes._version if has_version else None
    known: tuple[int | None, Rows] | None = _known.get(spatial_shapes) if has_version else None
    if known is not None and known[0] == version:
        return known[1]
    if spatial_shapes.is_meta:
        raise TypeError(f"{name} must be Python ints or hold numbers, got a tensor on meta")
    if spatial_shapes.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name} cannot be read from its device while a CUDA graph is captured: pass rows of "
            "Python ints, or call once with the same tensor before the capture"
            + ("" if has_version else " and outside inference mode, where it has a version")
        )
    rows = _read(spatial_shapes)
    if has_version:
        _known[spatial_shapes] = (version, rows)
    return rows


def _read(spatial_shapes: Tensor) -> Rows:
    return tuple(map(tuple, spatial_shapes.tolist()))


def _captures_scalars() -> bool:
    """Whether a graph may hold numbers of tensors; a compiler calls it while it makes the graph."""
    global _between_graphs
    import torch._dynamo

    if _between_graphs is _remembered:
        _between_graphs = torch.compiler.disable(_remembered)
        _between_graphs._torchdynamo_disable_msg = (
            "a graph cannot read the sizes from their tensor: pass rows of Python ints, or set "
            "torch._dynamo.config.capture_scalar_outputs = True"
        )
    return torch._dynamo.config.capture_scalar_outputs


# torch.compiler.assume_constant_result sets the same, but loads the compiler, and so does disable.
_captures_scalars._dynamo_marked_constant = True  # type: ignore[attr-defined]
_between_graphs: Any = _remembered


def _symbols(spatial_shapes: Tensor, value: Tensor) -> Rows:
    """The sizes as a compiler's symbols, and what it may assume of them, checked in each run."""
    rows: list[list[int]] = spatial_shapes.tolist()
    num_cells = 0
    for row in rows:
        for size in row:
            torch._check(size >= 1)
        num_cells += product(row)
    torch._check(num_cells == value.shape[1])
    return tuple([tuple(row) for row in rows])
