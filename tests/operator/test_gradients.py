"""First and second derivatives of every backend."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stdeform.testing import LAYOUTS, Layout, Problem, assert_close, with_layout
from tests.cuda.emulated_gpu import HAS_GPU
from tests.support.cases import (
    AXES,
    DTYPES,
    FORMS,
    NATIVE,
    arguments,
    asking,
    assert_gradients_close,
    draw,
    gradients,
    names,
    operator,
    oracle_gradients,
    tensors,
)


@functools.cache
def _problem(form: str, axes: str, dtype: str) -> tuple[Problem, tuple[Tensor, ...]]:
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw(form, AXES[axes], dtype=value_dtype, side_dtype=side_dtype)
    return problem, oracle_gradients(problem, form)


@functools.cache
def _problem_of_head_dim(
    form: str, axes: str, dtype: str, head_dim: int
) -> tuple[Problem, tuple[Tensor, ...]]:
    problem = draw(form, AXES[axes], head_dim=head_dim, dtype=DTYPES[dtype][0])
    return problem, gradients(problem.to(torch.float64), form, "baseline")


def _tiny(form: str, axes: str) -> tuple[list[Tensor], Any]:
    """Float64 leaves of a problem small enough for numerical derivatives, and its operator."""
    shapes = {"video": [(2, 3, 2), (1, 2, 1)], "image": [(3, 2), (1, 2)]}[axes]
    # A spread of one cell leaves some points outside, and some between the border and outside.
    problem = draw(
        form,
        shapes,
        dtype=torch.float64,
        num_queries=2,
        num_heads=2,
        head_dim=3,
        num_points=2,
        offset_std=1.0,
    )
    args = arguments(problem, form)
    leaves = [tensor.requires_grad_() for tensor in tensors(args)]

    def call(backend: str, *changed: Tensor) -> Tensor:
        return operator(form, backend)(changed[0], problem.spatial_shapes, *changed[1:])

    return leaves, call


def _nondeterminism(backend: str) -> float:
    """How far two runs may differ in float64: on a GPU sums come in any order."""
    return 1e-12 if backend == "cuda" else 0.0


# -- first derivatives -------------------------------------------------------------------------


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(backend: str, form: str, axes: str) -> None:
    leaves, call = _tiny(form, axes)
    # A random direction is enough for the reference, which is autograd's own work and slow, and
    # where the emulated kernels are tested in every direction without PyTorch around them.
    fast = backend == "reference" or (backend == "cuda" and not HAS_GPU)
    assert torch.autograd.gradcheck(
        functools.partial(call, backend),
        leaves,
        fast_mode=fast,
        nondet_tol=_nondeterminism(backend),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_dtypes(backend: str, form: str, axes: str, dtype: str) -> None:
    problem, expected = _problem(form, axes, dtype)
    actual = gradients(problem, form, backend)
    for grad, tensor in zip(actual, tensors(arguments(problem, form)), strict=True):
        assert grad.dtype == tensor.dtype
    assert_gradients_close(actual, expected, form)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize("head_dim", [1, 3, 5, 8, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 130])
def test_head_dims(kernel: str, head_dim: int, dtype: str) -> None:
    for axes, form in itertools.product(AXES, ("locations", "points")):
        problem, expected = _problem_of_head_dim(form, axes, dtype, head_dim)
        assert_gradients_close(gradients(problem, form, kernel), expected, form)


@pytest.mark.parametrize("shapes", [[(1, 1, 1)], [(1, 7, 1), (5, 1, 1)], [(8, 9), (1, 1)]], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_level_shapes(backend: str, form: str, shapes: list[tuple[int, ...]]) -> None:
    problem = draw(form, shapes)
    assert_gradients_close(gradients(problem, form, backend), oracle_gradients(problem, form), form)


@pytest.mark.parametrize("num_points", [1, 31, 64, 65, 200])
def test_numbers_of_points(kernel: str, num_points: int) -> None:
    for form in ("points", "boxes"):
        problem = draw(form, num_points=num_points, num_queries=3, dtype=torch.float64)
        expected = gradients(problem, form, "baseline")
        assert_gradients_close(gradients(problem, form, kernel), expected, form)


def test_many_samples_per_cell(kernel: str) -> None:
    # float32 sums of some 600 terms each.
    problem = draw("points", num_queries=400, num_points=4)
    expected = gradients(problem.to(torch.float64), "points", "baseline")
    assert_gradients_close(gradients(problem, "points", kernel), expected, "points")


def test_the_gradient_of_a_half_value_is_rounded_once(backend: str) -> None:
    # 400 queries add 1 / 64 to one cell; bfloat16 would stop growing at 4, where it has 1 / 32.
    value = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16, requires_grad=True)
    locations = torch.full((1, 400, 1, 1, 1, 2), 0.5)
    weights = torch.full((1, 400, 1, 1, 1), 1 / 64)
    operator("locations", backend)(value, [(1, 1)], locations, weights).sum().backward()
    assert value.grad is not None
    assert torch.equal(value.grad, torch.full_like(value, 400 / 64))


# -- which gradients are requested, and of what ------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_any_subset_of_inputs_gives_the_same_gradients(backend: str, form: str) -> None:
    problem, _ = _problem(form, "video", "f32")
    everything = dict(zip(names(form), gradients(problem, form, backend), strict=True))
    for wanted in itertools.product((True, False), repeat=len(everything)):
        if not any(wanted):
            continue
        args = asking(arguments(problem, form), wanted)
        asked = dict(itertools.compress(zip(names(form), tensors(args), strict=True), wanted))
        out = operator(form, backend)(*args)
        grads = torch.autograd.grad(out, list(asked.values()), problem.grad_out)
        for name, grad in zip(asked, grads, strict=True):
            if backend in ("cuda", "emulated") and name == "value":  # summed in any order
                assert_close(grad, everything[name].double(), "gradient", name)
            else:
                assert torch.equal(grad, everything[name]), (name, list(asked))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16-f32"])
@pytest.mark.parametrize("form", FORMS)
def test_layouts_of_inputs(backend: str, form: str, dtype: str, layout: Layout) -> None:
    problem, _ = _problem(form, "video", dtype)
    problem = problem.laid_out(layout)
    assert_gradients_close(gradients(problem, form, backend), oracle_gradients(problem, form), form)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_grad_out(backend: str, layout: Layout) -> None:
    for form in FORMS:
        problem, _ = _problem(form, "video", "f32")
        grad_out = with_layout(problem.grad_out, layout)
        problem = dataclasses.replace(problem, grad_out=grad_out)
        expected = oracle_gradients(problem, form)
        assert_gradients_close(gradients(problem, form, backend), expected, form)


def test_grad_out_of_a_sum_is_expanded(backend: str) -> None:
    problem, _ = _problem("points", "video", "f32")
    ones = torch.ones(()).expand_as(problem.grad_out)
    assert set(ones.stride()) == {0}
    expanded = dataclasses.replace(problem, grad_out=ones)
    expected = oracle_gradients(expanded, "points")
    assert_gradients_close(gradients(expanded, "points", backend), expected, "points")


@pytest.mark.parametrize(
    ("batch", "num_queries"), [(0, 7), (2, 0), (0, 0)], ids=["B=0", "Q=0", "B=Q=0"]
)
@pytest.mark.parametrize("form", FORMS)
def test_empty(backend: str, form: str, batch: int, num_queries: int) -> None:
    problem = draw(form, batch=batch, num_queries=num_queries)
    grads = gradients(problem, form, backend)
    for grad, tensor in zip(grads, tensors(arguments(problem, form)), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


def _saved_by(call: Callable[[], Tensor]) -> list[Tensor]:
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return saved


def test_only_inputs_are_saved(kernel: str) -> None:
    for form in FORMS:
        problem, _ = _problem(form, "video", "bf16-f32")
        args = asking(arguments(problem, form), (True,) * len(names(form)))
        saved = _saved_by(functools.partial(operator(form, kernel), *args))
        inputs = tensors(args)
        assert len(saved) == len(inputs)
        if kernel != "cuda":  # copies are saved there, which tests/cuda/test_cuda.py checks
            pointers = {tensor.data_ptr() for tensor in inputs}
            assert {tensor.data_ptr() for tensor in saved} == pointers


def test_backward_twice_adds_up(backend: str) -> None:
    problem, expected = _problem("points", "video", "f32")
    leaves = [tensor.detach().requires_grad_() for tensor in tensors(problem.from_offsets)]
    out = operator("points", backend)(leaves[0], problem.spatial_shapes, *leaves[1:])
    out.backward(problem.grad_out, retain_graph=True)
    out.backward(problem.grad_out)
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert_gradients_close(grads, [2 * grad for grad in expected], "points")


# -- coordinates at which nothing is read ------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e6])
@pytest.mark.parametrize("form", FORMS)
def test_a_sample_that_reads_nothing_passes_no_gradient(
    backend: str, form: str, bad: float
) -> None:
    problem = draw(form)
    locations, offsets = problem.sampling_locations.clone(), problem.sampling_offsets.clone()
    sample = 0, 1, 1, 0, 2
    locations[sample][1] = bad
    offsets[sample][1] = bad
    problem = dataclasses.replace(problem, sampling_locations=locations, sampling_offsets=offsets)
    grads = dict(zip(names(form), gradients(problem, form, backend), strict=True))
    name = "sampling_locations" if form == "locations" else "sampling_offsets"
    assert (grads[name][sample] == 0).all()
    for got in grads.values():
        assert torch.isfinite(got).all()
    for field, other in (
        ("sampling_locations", locations),
        ("sampling_offsets", offsets),
    ):
        problem = dataclasses.replace(
            problem,
            **{field: other.nan_to_num(1e6, 1e6, -1e6)},  # type: ignore[arg-type]
        )
    # Far outside is the same as no number, for every other gradient too.
    assert_gradients_close(list(grads.values()), oracle_gradients(problem, form), form)


def test_cells_that_are_not_read_do_not_leak_into_gradients(backend: str) -> None:
    for form in FORMS:
        problem = draw(form, [(3, 4, 5)], num_queries=2, num_points=1, num_heads=1, batch=1)
        value_grad = oracle_gradients(problem, form)[0]
        untouched = (value_grad == 0).all(-1, keepdim=True)
        assert untouched.any()
        value = torch.where(untouched, torch.nan, problem.value)
        poisoned = dataclasses.replace(problem, value=value)
        clean = dataclasses.replace(problem, value=torch.where(untouched, 0.0, problem.value))
        assert_gradients_close(
            gradients(poisoned, form, backend), oracle_gradients(clean, form), form
        )


@pytest.mark.parametrize("cell", [-1.0, 0.0, 2.0, 3.0, 4.0])
def test_on_a_kink_the_gradient_is_one_sided(backend: str, cell: float) -> None:
    """At a cell's centre the slope is the one to the right of it, as in `grid_sample`."""
    value = torch.randn(1, 4, 1, 16, dtype=torch.float64)
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.5, dtype=torch.float64)
    locations[..., 0] = (cell + 0.5) / 4
    weights = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)

    def slope(name: str) -> Tensor:
        leaf = locations.clone().requires_grad_()
        out = operator("locations", name)(value, [(1, 4)], leaf, weights)
        return torch.autograd.grad(out.sum(), leaf)[0][..., 0]

    padded = torch.cat([value.new_zeros(1), value.sum((0, 2, 3)), value.new_zeros(2)])
    at = int(cell) + 1
    expected = 4 * (padded[at + 1] - padded[at]) if cell < 4 else value.new_zeros(())
    assert_close(slope(backend).flatten(), expected[None], "gradient")


# -- second derivatives ------------------------------------------------------------------------


# The second derivative is the same for every instruction set, so only the best one is tested.
_DIFFERENTIABLE_TWICE = ["reference", NATIVE[0], "cuda"]


@pytest.mark.parametrize("backend", _DIFFERENTIABLE_TWICE, indirect=True)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_gradgradcheck(backend: str, form: str, axes: str) -> None:
    leaves, call = _tiny(form, axes)
    assert torch.autograd.gradgradcheck(
        functools.partial(call, backend),
        leaves,
        fast_mode=True,
        nondet_tol=_nondeterminism(backend),
    )


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_of_any_subset(needs_native: None, form: str) -> None:
    problem, _ = _problem(form, "video", "f64")

    def second(backend: str, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        args = asking(arguments(problem, form), wanted)
        asked = list(itertools.compress(tensors(args), wanted))
        out = operator(form, backend)(*args)
        cotangent = problem.grad_out.detach().requires_grad_()
        grads = torch.autograd.grad(out, asked, cotangent, create_graph=True)
        total = sum((grad.square().sum() for grad in grads), torch.zeros(()))
        return torch.autograd.grad(total, [cotangent, *asked], allow_unused=True)

    for wanted in itertools.product((True, False), repeat=len(names(form))):
        if any(wanted):
            for got, want in zip(
                second("native", wanted), second("reference", wanted), strict=True
            ):
                if got is None or want is None:
                    # The kernel's graph may hold zeros where the reference's holds nothing.
                    assert got is None or not got.any()
                else:
                    assert_close(got, want, "gradient")


@pytest.mark.parametrize("backend", _DIFFERENTIABLE_TWICE, indirect=True)
@pytest.mark.parametrize("dtype", ["f32", "bf16-f32", "f16"])
def test_second_derivatives_keep_dtypes(backend: str, dtype: str) -> None:
    problem, _ = _problem("points", "video", dtype)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors(problem.from_offsets)]
    out = operator("points", backend)(leaves[0], problem.spatial_shapes, *leaves[1:])
    grads = torch.autograd.grad(out, leaves, problem.grad_out, create_graph=True)
    total = sum((grad.float().square().sum() for grad in grads), torch.zeros(()))
    for grad, leaf in zip(torch.autograd.grad(total, leaves), leaves, strict=True):
        assert grad.dtype == leaf.dtype
        assert torch.isfinite(grad).all()
