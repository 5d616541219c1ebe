"""The operator under the transforms of `torch.func`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

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


def _given(stacked: Sequence[Tensor], in_dims: Sequence[int | None]) -> list[Tensor]:
    """What a mapped function gets: the whole stack, or its first where nothing is mapped."""
    return [
        tensor[0] if dim is None else tensor for tensor, dim in zip(stacked, in_dims, strict=True)
    ]


def _loop(
    function: Callable[..., Any], stacked: Sequence[Tensor], in_dims: Sequence[int | None]
) -> list[Any]:
    return [
        function(
            *(
                tensor[0] if dim is None else tensor[i]
                for tensor, dim in zip(stacked, in_dims, strict=True)
            )
        )
        for i in range(3)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_vmap_over_any_inputs(form: str) -> None:
    stacked, shapes = _stacked(form)
    attend = _on_tensors(form, shapes)
    for in_dims in itertools.product((0, None), repeat=len(stacked)):
        if set(in_dims) == {None}:
            continue
        mapped = torch.vmap(attend, in_dims)(*_given(stacked, in_dims))
        assert torch.equal(mapped, torch.stack(_loop(attend, stacked, in_dims)))


def test_vmap_over_any_axis() -> None:
    stacked, shapes = _stacked("points")
    attend = _on_tensors("points", shapes)
    expected = torch.stack(_loop(attend, stacked, (0,) * 4))
    moved = [tensor.movedim(0, dim) for tensor, dim in zip(stacked, (1, 2, 4, -1), strict=True)]
    assert torch.equal(torch.vmap(attend, (1, 2, 4, -1))(*moved), expected)
    assert torch.equal(
        torch.vmap(attend, (1, 2, 4, -1), out_dims=1)(*moved), expected.movedim(0, 1)
    )


@pytest.mark.parametrize("form", FORMS)
def test_vmap_of_grad(form: str) -> None:
    stacked, shapes = _stacked(form)
    every = tuple(range(len(stacked)))

    attend = _on_tensors(form, shapes)

    def loss(*args: Tensor) -> Tensor:
        return attend(*args).square().sum()

    for argnums in (every, (0,), every[1:]):
        grad = torch.func.grad(loss, argnums)
        for in_dims in ((0,) * len(stacked), (None, *(0,) * (len(stacked) - 1))):
            mapped = torch.vmap(grad, in_dims)(*_given(stacked, in_dims))
            for got, *want in zip(mapped, *_loop(grad, stacked, in_dims), strict=True):
                assert torch.equal(got, torch.stack(want))


def test_vmap_twice() -> None:
    stacked, shapes = _stacked("points")
    twice = [torch.stack([tensor, tensor.flip(0)]) for tensor in stacked]
    once = torch.vmap(_on_tensors("points", shapes))
    expected = torch.stack([once(*stacked), once(*(tensor.flip(0) for tensor in stacked))])
    assert torch.equal(torch.vmap(once)(*twice), expected)


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
