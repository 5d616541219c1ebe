"""Dense attention: PyTorch's fused one, its backend pinned and observed, and a naive one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

_FUSED = re.compile(r"_scaled_dot_product_(?:fused_)?(\w+?)_attention(_for_cpu)?(?:_backward)?\.")


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`scaled_dot_product_attention`; on CUDA a 16-bit dtype runs as flash attention or not at all.

    PyTorch chooses among several backends by version, sizes and GPU. Flash attention has no
    float32, for which the choice is PyTorch's.
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(query, key, value)
    return scaled_dot_product_attention(query, key, value)


def attend_naively(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every score is written to memory, as in code from before fused attention."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    out: Tensor = scores.softmax(-1) @ value
    return out


def backend_of(run: Callable[[], object]) -> str:
    """The backend of the fused attention that a call runs; "math" if it consists of products."""
    with _Names() as seen:
        run()
    found = {match[1] + (match[2] or "") for name in seen.names if (match := _FUSED.search(name))}
    return ", ".join(sorted(found)).replace("_", " ") or "math"


class _Names(TorchDispatchMode):
    """Notes the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))
