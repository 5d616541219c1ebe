"""Which gradients are computed, how they round, what is saved for them; second derivatives.

That first derivatives are right is in test_results.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stdeform.testing import assert_close
from tests.support.cases import (
    AXES,
    DTYPES,
    FORMS,
    NATIVE,
    arguments,
    asking,
    draw,
    gradients,
    names,
    operator,
    tensors,
)


def _tiny(form: str, axes: str, backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The operator of its tensors, and float64 leaves few enough for numerical derivatives."""
    shapes = {"video": [(2, 3, 2), (1, 2, 1)], "image": [(3, 2), (1, 2)]}[axes]
    # A spread of one cell leaves some points outside, and some between the border and outside.
    sizes = {"num_queries": 2, "num_heads": 2, "head_dim": 3}
    num_points = {"video": 2, "image": (1, 3)}[axes]
    settings = {"num_points": num_points, "dtype": torch.float64, "offset_std": 1.0}
    problem = draw(form, shapes, **sizes, **settings)

    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return operator(form, backend)(value, shapes, *others, num_points=problem.num_points)

    return attend, [tensor.requires_grad_() for tensor in tensors(arguments(problem, form))]


def _nondeterminism(backend: str) -> float:
    """How far two runs may differ in float64: on a GPU sums come in any order."""
    return 1e-12 if backend == "cuda" else 0.0


# -- first derivatives -------------------------------------------------------------------------


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(backend: str, form: str, axes: str) -> None:
    # In a random direction: test_results.py compares every element.
    assert torch.autograd.gradcheck(
        *_tiny(form, axes, backend), fast_mode=True, nondet_tol=_nondeterminism(backend)
    )


def test_the_gradient_of_a_half_value_is_rounded_once(backend: str) -> None:
    # 400 queries add 1 / 64 to one cell; bfloat16 would stop growing at 4, where it has 1 / 32.
    value = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16, requires_grad=True)
    locations = torch.full((1, 400, 1, 1, 1, 2), 0.5)
    weights = torch.full((1, 400, 1, 1, 1), 1 / 64)
    operator("locations", backend)(value, [(1, 1)], locations, weights).sum().backward()
    assert value.grad is not None
    assert torch.equal(value.grad, torch.full_like(value, 400 / 64))


def _subsets(form: str) -> list[tuple[bool, ...]]:
    return list(itertools.product((True, False), repeat=len(names(form))))[:-1]  # all but none


@pytest.mark.parametrize("num_queries", [5, 21])  # without packed copies, and with
@pytest.mark.parametrize("form", FORMS)
def test_any_subset_of_inputs_gives_the_same_gradients(
    backend: str, form: str, num_queries: int
) -> None:
    problem = draw(form, num_queries=num_queries)
    everything = dict(zip(names(form), gradients(problem, form, backend), strict=True))
    for wanted in _subsets(form):
        args = asking(arguments(problem, form), wanted)
        asked = dict(itertools.compress(zip(names(form), tensors(args), strict=True), wanted))
        out = operator(form, backend)(*args)
        grads = torch.autograd.grad(out, list(asked.values()), problem.grad_out)
        for name, grad in zip(asked, grads, strict=True):
            if backend in ("cuda", "emulated") and name == "value":  # summed in any order
                assert_close(grad, everything[name].double(), "gradient", name)
            else:
                assert torch.equal(grad, everything[name]), (name, list(asked))


def test_only_inputs_are_saved(kernel: str) -> None:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    for form in FORMS:
        problem = draw(form, dtype=torch.bfloat16, side_dtype=torch.float32)
        inputs = tensors(arguments(problem.requires_grad_(), form))
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            operator(form, kernel)(*arguments(problem, form))
        assert len(saved) == len(inputs)
        if kernel != "cuda":  # copies are saved there, which tests/cuda/test_cuda.py checks
            assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in inputs}


# -- second derivatives ------------------------------------------------------------------------


# The second derivative is the same for every instruction set, so only the best one is tested.
_DIFFERENTIABLE_TWICE = ["reference", NATIVE[0], "cuda"]


@pytest.mark.parametrize("backend", _DIFFERENTIABLE_TWICE, indirect=True)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_gradgradcheck(backend: str, form: str, axes: str) -> None:
    assert torch.autograd.gradgradcheck(
        *_tiny(form, axes, backend), fast_mode=True, nondet_tol=_nondeterminism(backend)
    )


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_of_any_subset(needs_native: None, form: str) -> None:
    problem = draw(form, dtype=torch.float64)

    def second(backend: str, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        args = asking(arguments(problem, form), wanted)
        asked = list(itertools.compress(tensors(args), wanted))
        out = operator(form, backend)(*args)
        cotangent = problem.grad_out.detach().requires_grad_()
        grads = torch.autograd.grad(out, asked, cotangent, create_graph=True)
        total = sum((grad.square().sum() for grad in grads), torch.zeros(()))
        return torch.autograd.grad(total, [cotangent, *asked], allow_unused=True)

    for wanted in _subsets(form):
        for got, want in zip(second("native", wanted), second("reference", wanted), strict=True):
            if got is None or want is None:
                # The kernel's graph may hold zeros where the reference's holds nothing.
                assert got is None or not got.any()
            else:
                assert_close(got, want, "gradient")


@pytest.mark.parametrize("backend", _DIFFERENTIABLE_TWICE, indirect=True)
@pytest.mark.parametrize("dtype", ["f32", "bf16-f32", "f16"])
def test_second_derivatives_keep_dtypes(backend: str, dtype: str) -> None:
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw("points", dtype=value_dtype, side_dtype=side_dtype).requires_grad_()
    leaves = tensors(problem.from_offsets)
    out = operator("points", backend)(*problem.from_offsets)
    grads = torch.autograd.grad(out, leaves, problem.grad_out, create_graph=True)
    total = sum((grad.float().square().sum() for grad in grads), torch.zeros(()))
    for grad, leaf in zip(torch.autograd.grad(total, leaves), leaves, strict=True):
        assert grad.dtype == leaf.dtype
        assert torch.isfinite(grad).all()
