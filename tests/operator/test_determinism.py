"""The same bits for every number of threads, and every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stdeform import _native
from stdeform.testing import Problem
from tests.support.cases import DTYPES, FORMS, draw, forward, gradients

THREADS = (1, 2, 3, 5, 8, 16)


def _everything(problem: Problem, form: str, backend: str, threads: int) -> list[Tensor]:
    _native.options.num_threads = threads
    return [forward(problem, form, backend), *gradients(problem, form, backend)]


def _assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16-f32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("batch", "num_heads"), [(1, 1), (1, 3), (2, 4), (5, 4)], ids=lambda size: str(size)
)
def test_threads_do_not_change_a_bit(
    native: str, batch: int, num_heads: int, form: str, dtype: str
) -> None:
    # Fewer and more units of work (batch elements times heads) than threads, and no multiple of
    # them. Many samples per cell: sums in another order would show.
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw(
        form,
        [(3, 4, 5), (1, 2, 2)],
        batch=batch,
        num_heads=num_heads,
        num_queries=97,
        head_dim=20,
        dtype=value_dtype,
        side_dtype=side_dtype,
    )
    alone = _everything(problem, form, native, 1)
    for threads in THREADS[1:]:
        _assert_same_bits(_everything(problem, form, native, threads), alone)


@pytest.mark.parametrize("num_queries", [1, 2, 7])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (7, 1, 1)], ids=str)
def test_more_threads_than_cells_or_queries(
    native: str, shape: tuple[int, ...], num_queries: int
) -> None:
    problem = draw("points", [shape], batch=1, num_heads=1, num_queries=num_queries)
    alone = _everything(problem, "points", native, 1)
    _assert_same_bits(_everything(problem, "points", native, 16), alone)


def test_threads_are_torchs(native: str) -> None:
    """`torch.set_num_threads` counts where nothing is forced."""
    problem = draw("points", num_queries=97)
    alone = _everything(problem, "points", native, 1)
    _native.options.num_threads = None
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results = [
                forward(problem, "points", native),
                *gradients(problem, "points", native),
            ]
            _assert_same_bits(results, alone)
    finally:
        torch.set_num_threads(before)


def test_repeats_give_the_same_bits(on_cpu: str) -> None:
    for form in FORMS:
        problem = draw(form, num_queries=97)
        first = [forward(problem, form, on_cpu), *gradients(problem, form, on_cpu)]
        for _ in range(3):
            again = [forward(problem, form, on_cpu), *gradients(problem, form, on_cpu)]
            _assert_same_bits(again, first)


def test_deterministic_algorithms_are_no_obstacle(on_cpu: str) -> None:
    problem = draw("points")
    expected = gradients(problem, "points", on_cpu)
    torch.use_deterministic_algorithms(True)
    try:
        _assert_same_bits(list(gradients(problem, "points", on_cpu)), list(expected))
    finally:
        torch.use_deterministic_algorithms(False)


def test_batch_rows_do_not_depend_on_each_other(native: str) -> None:
    """A row gives the same bits alone and in a batch."""
    problem = draw("points", batch=3, num_queries=97)
    together = _everything(problem, "points", native, 3)
    for row in range(3):
        alone = problem.map(lambda tensor, row=row: tensor[row : row + 1])  # type: ignore[misc]
        results = _everything(alone, "points", native, 3)
        _assert_same_bits(results, [tensor[row : row + 1] for tensor in together])
