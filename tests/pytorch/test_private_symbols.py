"""PyTorch's private symbols: a version of PyTorch without one of them gives the same results."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import stdeform
from stdeform import _dispatch, _native

pytestmark = pytest.mark.usefixtures("needs_native")

SYMBOLS = [
    "torch._C.DispatchKey",
    "torch._C.DispatchKeySet",
    "torch._C._are_functorch_transforms_active",
    "torch._C._dispatch_keys",
    "torch._C._get_tracing_state",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch._C._autograd._profiler_enabled",
    "torch.autograd.forward_ad._current_level",
]

# Each symbol is hidden while a fresh process imports stdeform._dispatch; PyTorch itself may need it
# before and after. Processes are forked from one that has imported PyTorch, which takes long.
IMPORT_WITHOUT_EACH = """
import importlib, json, os, sys
import torch

def without(symbol):
    module, _, name = symbol.rpartition(".")
    owner = importlib.import_module(module)
    value = getattr(owner, name)

    class Hide:
        def find_spec(self, imported, path, target=None):
            if imported == "stdeform._dispatch":
                delattr(owner, name)

    sys.meta_path.insert(0, Hide())
    import stdeform
    assert not hasattr(owner, name)
    setattr(owner, name, value)
    found = [tensor.tolist() for tensor in results()]
    print(json.dumps([symbol, stdeform._dispatch.fast_path, found]), flush=True)

for symbol in sys.argv[1:]:
    if os.fork() == 0:
        without(symbol)
        os._exit(0)
    assert os.wait()[1] == 0, symbol
"""


def results() -> list[Tensor]:
    """Of an unrecorded, a recorded and a mapped call."""
    import torch

    import stdeform
    from stdeform.testing import make_problem

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


@pytest.fixture(scope="module")
def without() -> dict[str, tuple[bool, list[Any]]]:
    """By the symbol that is missing: whether there is a fast path, and the results."""
    script = (
        f"from __future__ import annotations\n{inspect.getsource(results)}{IMPORT_WITHOUT_EACH}"
    )
    command = [sys.executable, "-c", script, *SYMBOLS]
    root = Path(stdeform.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, done.stdout.splitlines())
    return {symbol: (fast_path, found) for symbol, fast_path, found in rows}


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_without_a_symbol_results_are_the_same(
    symbol: str, without: dict[str, tuple[bool, list[Any]]]
) -> None:
    fast_path, found = without[symbol]
    assert not fast_path
    for got, want in zip(found, results(), strict=True):
        assert torch.equal(torch.tensor(got), want)


def test_every_private_symbol_is_hidden_by_a_test() -> None:
    """And this PyTorch has them all, so that the fast path is not lost in silence."""
    assert _dispatch.fast_path
    private = {name for name in vars(_dispatch) if callable(getattr(torch._C, name, None))}
    assert private | {"_profiler_enabled", "_current_level"} == {
        symbol.rpartition(".")[2] for symbol in SYMBOLS
    }


def test_the_fast_path_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results()
    monkeypatch.setattr(_dispatch, "fast_path", False)
    monkeypatch.setattr(_native, "forward", None)  # only the fast path calls it by this name
    for got, want in zip(results(), expected, strict=True):
        assert torch.equal(got, want)


def test_the_stream_is_found_without_a_private_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    def current_stream(index: int) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=100 + index)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: index, raising=False)
    assert _native._current_stream(1) == 1
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream")
    assert _native._current_stream(1) == 101
