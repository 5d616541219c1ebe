"""The same bits for every number of threads, and every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stdeform import _native
from stdeform.testing import Problem
from tests.support.cases import DTYPES, FORMS, draw, results

THREADS = (1, 2, 3, 5, 8, 16)


def _on_threads(problem: Problem, form: str, backend: str, threads: int) -> list[Tensor]:
    _native.options.num_threads = threads
    return results(problem, form, backend)


def _assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16-f32", "bf16"])
@pytest.mark.parametrize(
    ("batch", "num_heads"), [(1, 1), (1, 3), (2, 4), (5, 4)], ids=lambda size: str(size)
)
def test_threads_do_not_change_a_bit(native: str, batch: int, num_heads: int, dtype: str) -> None:
    # Fewer and more units of work (batch elements times heads) than threads, and no multiple of
    # them. Many samples per cell: sums in another order would show.
    value_dtype, side_dtype = DTYPES[dtype]
    sizes = {"batch": batch, "num_heads": num_heads, "num_queries": 97, "head_dim": 20}
    for form in FORMS:
        problem = draw(
            form, [(3, 4, 5), (1, 2, 2)], **sizes, dtype=value_dtype, side_dtype=side_dtype
        )
        alone = _on_threads(problem, form, native, 1)
        for threads in THREADS[1:]:
            _assert_same_bits(_on_threads(problem, form, native, threads), alone)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize(("batch", "num_heads"), [(1, 1), (2, 3)], ids=str)
def test_threads_do_not_change_a_bit_of_few_samples(
    native: str, batch: int, num_heads: int, dtype: str
) -> None:
    """Up to as many threads as heads work without copies; the small level has many samples."""
    sizes = {"batch": batch, "num_heads": num_heads, "num_queries": 97, "head_dim": 32}
    for form in FORMS:
        problem = draw(form, [(1, 2, 2), (8, 20, 20)], **sizes, dtype=DTYPES[dtype][0])
        alone = _on_threads(problem, form, native, 1)
        for threads in THREADS[1:]:
            _assert_same_bits(_on_threads(problem, form, native, threads), alone)


@pytest.mark.parametrize("num_queries", [1, 2, 7])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (7, 1, 1)], ids=str)
def test_more_threads_than_cells_or_queries(
    native: str, shape: tuple[int, ...], num_queries: int
) -> None:
    problem = draw("points", [shape], batch=1, num_heads=1, num_queries=num_queries)
    alone = _on_threads(problem, "points", native, 1)
    _assert_same_bits(_on_threads(problem, "points", native, 16), alone)


def test_threads_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.set_num_threads` counts where nothing is forced."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert _native._cpu_options() == ("", 3, False)
    _native.options.num_threads = 2
    assert _native._cpu_options() == ("", 2, True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_repeats_give_the_same_bits(on_cpu: str, deterministic: bool) -> None:
    """Also where PyTorch is asked for deterministic algorithms, which is no obstacle."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        for form in FORMS:
            problem = draw(form, num_queries=97)
            first = results(problem, form, on_cpu)
            for _ in range(3):
                _assert_same_bits(results(problem, form, on_cpu), first)
    finally:
        torch.use_deterministic_algorithms(False)


def test_batch_rows_do_not_depend_on_each_other(native: str) -> None:
    """A row gives the same bits alone and in a batch."""
    problem = draw("points", batch=3, num_queries=97)
    together = _on_threads(problem, "points", native, 3)
    for row in range(3):
        alone = problem.map(lambda tensor, row=row: tensor[row : row + 1])  # type: ignore[misc]
        found = _on_threads(alone, "points", native, 3)
        _assert_same_bits(found, [tensor[row : row + 1] for tensor in together])
