"""With an adapter the operator computes, and what the project's own function does.

Over modules with the projects' names and signatures; and over a project that is installed, where
its call does not need its compiled extension.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.integrations.adapters.calls import (
    ADAPTERS,
    CALLS,
    LAYERS,
    Call,
    adapter,
    assert_same,
    inputs,
    libreyolo,
    on_cuda,
    plain,
    rfdetr,
    run,
    ultralytics,
)

OF_CALLS = pytest.mark.parametrize(("project", "call"), CALLS.values(), ids=CALLS)


@OF_CALLS
@pytest.mark.usefixtures("needs_native", "fakes")
def test_the_operator_computes_the_same(project: str, call: Call) -> None:
    check(project, call)


def check(project: str, call: Call) -> None:
    expected, calls = run(call)
    assert calls == [0, 0]
    adapter(project).enable()
    found, calls = run(call)
    assert calls == [1, 1]
    assert_same(found, expected)
    adapter(project).disable()
    again, calls = run(call)
    assert calls == [0, 0]
    assert all(map(torch.equal, again, expected))


@OF_CALLS
@pytest.mark.usefixtures("needs_native", "fakes")
def test_what_is_imported_afterwards_has_it_too(project: str, call: Call) -> None:
    adapter(project).enable()
    assert run(call)[1] == [1, 1]


@pytest.mark.parametrize("project", ADAPTERS)
@pytest.mark.usefixtures("needs_native")
def test_an_installed_project(project: str) -> None:
    pytest.importorskip(LAYERS[project], exc_type=ImportError)
    check(*CALLS[project])


@pytest.mark.parametrize(
    ("project", "call", "dtype"),
    [
        ("ultralytics", ultralytics, torch.float32),
        ("rfdetr", rfdetr, torch.float32),
        ("mmcv", partial(on_cuda, "mmcv"), torch.bfloat16),
        ("libreyolo", libreyolo, torch.bfloat16),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_the_dtype_of_the_result(project: str, call: Call, dtype: torch.dtype) -> None:
    """Where autocast makes the value smaller: as PyTorch promotes, or as their kernels return."""
    adapter(project).enable()
    value, locations, weights = inputs()
    out = call(value.bfloat16(), locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), plain(value, locations, weights), rtol=0.02, atol=0.02)
