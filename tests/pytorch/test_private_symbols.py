"""PyTorch's private symbols: a version of PyTorch without one of them gives the same results."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils import dlpack

import stdeform
from stdeform import _dispatch, _native, functional
from stdeform.testing import make_problem

pytestmark = pytest.mark.usefixtures("needs_native")

SYMBOLS = [
    "torch._C.DispatchKey",
    "torch._C._are_functorch_transforms_active",
    "torch._C._dispatch_tls_is_dispatch_key_excluded",
    "torch._C._get_tracing_state",
    "torch._C._is_any_autocast_enabled",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch._C._autograd._profiler_enabled",
    "torch.autograd.forward_ad._current_level",
]


def results() -> list[Tensor]:
    """Of an unrecorded, a recorded and a mapped call."""
    problem = make_problem(num_queries=2, kink_margin=0.1)
    value, shapes, *others = problem.from_offsets

    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return stdeform.st_deform_attn_from_offsets(value, shapes, *others)

    leaves = [tensor.clone().requires_grad_() for tensor in (value, *others)]
    out = attend(*leaves)
    return [
        attend(value, *others),
        out.detach(),
        *torch.autograd.grad(out, leaves, problem.grad_out),
        torch.vmap(attend)(*(tensor[None] for tensor in (value, *others))),
    ]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_without_a_symbol_results_are_the_same(
    symbol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results()
    owner, _, name = symbol.rpartition(".")
    spec = importlib.util.find_spec("stdeform._dispatch")
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as hidden:  # PyTorch itself may need it before and after
        hidden.delattr(importlib.import_module(owner), name)
        spec.loader.exec_module(module)
    assert not module.fast_path
    monkeypatch.setattr(functional, "_dispatch", module)
    for got, want in zip(results(), expected, strict=True):
        assert torch.equal(got, want)


def test_every_private_symbol_is_hidden_by_a_test() -> None:
    """And this PyTorch has them all, so that the fast path is not lost in silence."""
    assert _dispatch.fast_path
    private = {name for name in vars(_dispatch) if callable(getattr(torch._C, name, None))}
    assert private | {"_profiler_enabled", "_current_level"} == {
        symbol.rpartition(".")[2] for symbol in SYMBOLS
    }


def test_the_stream_is_found_without_a_private_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    def current_stream(index: int) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=100 + index)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: index, raising=False)
    assert _native._current_stream(1) == 1
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream")
    assert _native._current_stream(1) == 101


def test_tensors_are_described_without_the_function_of_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As up to PyTorch 2.9: a core that does not find it when it is loaded."""
    expected = results()
    core = tmp_path / Path(str(_native._C.__file__)).name
    shutil.copy(str(_native._C.__file__), core)
    spec = importlib.util.spec_from_file_location("old._C", core)
    with monkeypatch.context() as hidden:
        hidden.delattr(Tensor, "__dlpack_c_exchange_api__", raising=False)
        to_capsule = mock.Mock(side_effect=dlpack.to_dlpack)
        hidden.setattr(dlpack, "to_dlpack", to_capsule)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    monkeypatch.setattr(_native, "_C", module)
    for got, want in zip(results(), expected, strict=True):
        assert torch.equal(got, want)
    assert to_capsule.called
