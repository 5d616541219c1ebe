"""Dense attention on a GPU: flash attention where there is one, and what ran is reported."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.subjects import sdpa
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.sdpa import backend_of
from benchmarks.workloads import WORKLOADS

_ENABLED = ("flash", "mem_efficient", "math", "cudnn")


def _enabled() -> set[str]:
    return {name for name in _ENABLED if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_cuda", [False, True])
def test_sixteen_bits_on_a_gpu_run_as_flash_attention_or_not_at_all(
    dtype: torch.dtype, is_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", lambda *_: seen.append(_enabled()))
    before = _enabled()
    like = SimpleNamespace(dtype=dtype, is_cuda=is_cuda)
    IMPLEMENTATIONS["dense"].prepare(WORKLOADS["tiny"], 0).function(like, like, like)
    assert seen == [{"flash"} if is_cuda and dtype != torch.float32 else before]
    assert _enabled() == before


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
def test_the_backend_that_ran_is_seen(mode: str) -> None:
    run = IMPLEMENTATIONS["dense"].prepare(WORKLOADS["tiny"], 0).call(mode)
    assert backend_of(run) == "flash for cpu"
    with sdpa_kernel(SDPBackend.MATH):
        assert backend_of(run) == "math"


@pytest.mark.parametrize(
    ("operators", "backend"),
    [
        (["_scaled_dot_product_flash_attention.default"], "flash"),
        (
            [
                "_scaled_dot_product_efficient_attention.default",
                "_scaled_dot_product_efficient_attention_backward.default",
            ],
            "efficient",
        ),
        (["_scaled_dot_product_cudnn_attention.default"], "cudnn"),
        (["bmm.default", "_softmax.default"], "math"),
    ],
)
def test_operators_of_a_gpu_are_told_apart(
    operators: list[str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Names(sdpa._Names):
        def __enter__(self) -> sdpa._Names:
            self.names = operators
            return super().__enter__()

    monkeypatch.setattr(sdpa, "_Names", Names)
    assert backend_of(lambda: None) == backend
