"""The operator under the transforms of `torch.func`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from stdeform import _dispatch
from stdeform.testing import assert_close
from tests.support.cases import (
    FORMS,
    arguments,
    assert_gradients_close,
    draw,
    gradients,
    operator,
    tensors,
)

pytestmark = pytest.mark.usefixtures("needs_native", "either_way")


@pytest.fixture(params=[True, False], ids=["fast path", "public way"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the private symbols of PyTorch that `stdeform._dispatch` uses, and without."""
    monkeypatch.setattr(_dispatch, "fast_path", request.param)


def _stacked(form: str) -> tuple[list[Tensor], tuple[tuple[int, ...], ...]]:
    """Three problems of a kind, stacked: what a mapped axis holds."""
    drawn = [draw(form, seed=seed, num_queries=3) for seed in range(3)]
    columns = zip(*(tensors(arguments(problem, form)) for problem in drawn), strict=True)
    return [torch.stack(column) for column in columns], drawn[0].spatial_shapes


def _on_tensors(
    form: str, shapes: tuple[tuple[int, ...], ...], backend: str = "native"
) -> Callable[..., Tensor]:
    """The operator of its tensors alone, as transforms take it."""
    return lambda value, *others: operator(form, backend)(value, shapes, *others)


def _check_vmap(
    function: Callable[..., tuple[Tensor, ...]],
    stacked: Sequence[Tensor],
    in_dims: Sequence[int | None],
) -> None:
    """Compares with a loop; of what is not mapped, the function gets the first of the stack."""
    pairs = list(zip(stacked, in_dims, strict=True))
    mapped = torch.vmap(function, tuple(in_dims))(*(t[0] if dim is None else t for t, dim in pairs))
    loop = [function(*(t[0] if dim is None else t[i] for t, dim in pairs)) for i in range(3)]
    for got, *want in zip(mapped, *loop, strict=True):
        assert torch.equal(got, torch.stack(want))


@pytest.mark.parametrize("form", FORMS)
def test_vmap_over_any_inputs(form: str) -> None:
    stacked, shapes = _stacked(form)
    attend = _on_tensors(form, shapes)
    for in_dims in list(itertools.product((0, None), repeat=len(stacked)))[:-1]:  # all but none
        _check_vmap(lambda *args: (attend(*args),), stacked, in_dims)


def test_vmap_over_any_axis() -> None:
    stacked, shapes = _stacked("points")
    attend = torch.vmap(_on_tensors("points", shapes))
    axes = 1, 2, 4, -1
    moved = [tensor.movedim(0, axis) for tensor, axis in zip(stacked, axes, strict=True)]
    over_any = torch.vmap(_on_tensors("points", shapes), axes)
    assert torch.equal(over_any(*moved), attend(*stacked))


@pytest.mark.parametrize("form", FORMS)
def test_vmap_of_grad(form: str) -> None:
    stacked, shapes = _stacked(form)
    attend = _on_tensors(form, shapes)

    def loss(*args: Tensor) -> Tensor:
        return attend(*args).square().sum()

    every = tuple(range(len(stacked)))
    for argnums in (every, (0,), every[1:]):
        for value_dim in (0, None):
            in_dims = (value_dim, *(0 for _ in every[1:]))
            _check_vmap(torch.func.grad(loss, argnums), stacked, in_dims)


@pytest.mark.parametrize("form", FORMS)
def test_jacrev_is_every_gradient(form: str) -> None:
    problem = draw(form, [(2, 3, 2)], batch=1, num_queries=2, head_dim=2, dtype=torch.float64)
    args = tensors(arguments(problem, form))
    attend = _on_tensors(form, problem.spatial_shapes)
    jacobians = torch.func.jacrev(attend, argnums=tuple(range(len(args))))(*args)
    contracted = [
        torch.tensordot(problem.grad_out, jacobian, problem.grad_out.dim())
        for jacobian in jacobians
    ]
    assert_gradients_close(contracted, gradients(problem, form, "baseline"), form)


# PyTorch compiles some of its own forward-mode formulas with torch.jit.script, which it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_forward_mode(form: str) -> None:
    """A tangent goes in and comes out, by torch.func and by dual numbers."""
    problem = draw(form, num_queries=3, dtype=torch.float64)
    args = tensors(arguments(problem, form))
    tangents = tuple(torch.randn_like(arg) for arg in args)
    attend = _on_tensors(form, problem.spatial_shapes)
    # The same number by reverse mode: <grad_out, J tangents>.
    grads = gradients(problem, form, "native")
    expected = sum((grad * t).sum() for grad, t in zip(grads, tangents, strict=True))
    _, by_func = torch.func.jvp(attend, tuple(args), tangents)
    assert_close((by_func * problem.grad_out).sum(), torch.as_tensor(expected), "gradient")
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(args, tangents, strict=True)]
        assert torch.equal(forward_ad.unpack_dual(attend(*duals)).tangent, by_func)


def test_hessian() -> None:
    problem = draw("points", [(2, 3)], batch=1, num_queries=1, head_dim=2, dtype=torch.float64)
    args = tensors(problem.from_offsets)

    def hessian(backend: str) -> Tensor:
        attend = _on_tensors("points", problem.spatial_shapes, backend)

        def loss(offsets: Tensor) -> Tensor:
            return attend(args[0], args[1], offsets, args[3]).square().sum()

        jacobian = torch.func.jacrev(torch.func.jacrev(loss))(args[2])
        assert isinstance(jacobian, Tensor)
        return jacobian

    assert_close(hessian("native"), hessian("reference"), "gradient")
