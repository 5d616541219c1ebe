"""The operators under autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stdeform
from tests.support.cases import FORMS, arguments, draw, operator, tensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)


def _cast(args: tuple[Any, ...], dtypes: tuple[torch.dtype, ...]) -> list[Any]:
    """The first tensor in the first of the dtypes, the others in turns in the rest."""
    first, *rest = dtypes
    others = iter(rest * len(args))
    cast = [arg.to(next(others)) if isinstance(arg, Tensor) else arg for arg in args[1:]]
    return [args[0].to(first), *cast]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_is_cast(form: str, half: torch.dtype, backend: str) -> None:
    """The value to autocast's dtype, another half dtype to float32: as by hand, bit for bit."""
    attend = operator(form, backend)
    other = next(dtype for dtype in HALVES if dtype is not half)
    for dtypes in ((a, *rest) for a in DTYPES for rest in ((half, torch.float32), (other, half))):
        args = _cast(arguments(draw(form), form), dtypes)
        by_hand = [
            arg.float() if isinstance(arg, Tensor) and arg.dtype is other else arg for arg in args
        ]
        by_hand[0] = args[0].to(half)
        with torch.autocast("cpu", half):
            out = attend(*args)
        assert out.dtype is half
        assert torch.equal(out, attend(*by_hand))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_have_the_dtypes_of_the_inputs(form: str) -> None:
    problem = draw(form)
    args = _cast(arguments(problem, form), (torch.float32, torch.bfloat16, torch.float16))
    leaves = [tensor.requires_grad_() for tensor in tensors(args)]
    with torch.autocast("cpu", torch.bfloat16):
        out = operator(form)(*args)
    grads = torch.autograd.grad(out.float().sum(), leaves)
    exact = [arg.detach().double() if isinstance(arg, Tensor) else arg for arg in args]
    wanted = [tensor.requires_grad_() for tensor in tensors(exact)]
    want = torch.autograd.grad(operator(form, "reference")(*exact).sum(), wanted)
    for got, expected, leaf in zip(grads, want, leaves, strict=True):
        assert got.dtype is leaf.dtype
        # The value and the result are rounded to bfloat16, whose eps is 2^-8 = 0.004.
        torch.testing.assert_close(got.double(), expected, rtol=0.05, atol=0.05)


def test_what_is_left_alone() -> None:
    args = draw("points", dtype=torch.float64).from_offsets
    halves = _cast(draw("points").from_offsets, (torch.bfloat16, torch.float32))
    halves[3] = halves[3].half()
    expected = operator("points")(*args)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(operator("points")(*args), expected)
        with pytest.raises(TypeError, match="value must be one of"):
            operator("points")(args[0].long(), *args[1:])
        with pytest.raises(TypeError, match="sampling_offsets must be float32"):
            operator("points")(halves[0], *halves[1:3], halves[3].double(), halves[4])
        with torch.autocast("cpu", enabled=False), pytest.raises(TypeError, match="float32 or of"):
            operator("points")(*halves)
        meta = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args]
        assert operator("points")(*meta).dtype is torch.float64


@pytest.mark.usefixtures("needs_native")
def test_compiled() -> None:
    torch._dynamo.reset()
    attend = operator("points", "native")
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    # Compiled with and without, and with again.
    for enabled in (True, False, True):
        dtype = torch.bfloat16 if enabled else torch.float32
        args = _cast(draw("points").from_offsets, (torch.float32, dtype))
        leaves = [tensor.requires_grad_() for tensor in tensors(args)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outs = compiled(*args), attend(*args)
        assert outs[0].dtype is dtype
        assert torch.equal(*outs)
        grads = [torch.autograd.grad(out.sum(), leaves) for out in outs]
        for got, want in zip(*grads, strict=True):
            assert torch.equal(got, want)


def test_a_layer_of_ones_own() -> None:
    """A norm's float32 value beside what projections predict in autocast's dtype."""
    query, cells = torch.randn(1, 7, 32), torch.randn(1, 20, 32)
    offsets, logits = torch.nn.Linear(32, 32), torch.nn.Linear(32, 16)
    norm = torch.nn.LayerNorm(32)

    def attend() -> Tensor:
        return stdeform.st_deform_attn_from_offsets(
            *(norm(cells).unflatten(-1, (4, 8)), [(4, 5)], torch.full((1, 7, 1, 2), 0.4)),
            *(offsets(query).view(1, 7, 4, 1, 4, 2), logits(query).view(1, 7, 4, 1, 4)),
        )

    with torch.autocast("cpu", torch.bfloat16):
        out = attend()
    assert out.dtype is torch.bfloat16
    # Value, offsets (in cells), logits and result are rounded to bfloat16.
    torch.testing.assert_close(out.float(), attend(), rtol=0.05, atol=0.05)
