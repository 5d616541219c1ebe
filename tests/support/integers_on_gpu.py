"""A GPU for integers: stdeform finds them there, while they and all other tensors are not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stdeform import _shape_tensors


class IntegersOnGpu:
    """What is read from the device, and whether a CUDA graph is captured on it.

    Attributes:
        reads: The tensors whose numbers were read, in this order.
        capturing: Whether a graph is being captured, in which nothing can be read.
    """

    def __init__(self) -> None:
        self.reads: list[Tensor] = []
        self.capturing = False


@contextlib.contextmanager
def installed() -> Iterator[IntegersOnGpu]:
    """Moves integers for as long as the context lasts."""
    gpu = IntegersOnGpu()
    read = _shape_tensors._read

    def watched(tensor: Tensor) -> _shape_tensors.Rows:
        assert not gpu.capturing
        gpu.reads.append(tensor)
        return read(tensor)

    def is_cuda(tensor: Tensor) -> bool:
        return tensor.dtype == torch.int64 or torch._C.TensorBase.is_cuda.__get__(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shape_tensors, "_read", watched)
        patch.setattr(Tensor, "is_cuda", property(is_cuda))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.capturing)
        yield gpu
