"""The operator as it is registered: opcheck, fake and meta tensors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from stdeform import _native, _ops
from stdeform.testing import Problem
from tests.support.cases import (
    FORMS,
    arguments,
    asking,
    draw,
    names,
    results,
    subsets,
    tensors,
)

pytestmark = pytest.mark.usefixtures("needs_native")


def _op_inputs(problem: Problem, form: str) -> tuple[Any, ...]:
    """The arguments of the registered operator."""
    value, shapes, *others = arguments(problem, form)
    reference_points = [None] if form == "locations" else []
    sizes = [size for row in shapes for size in row]
    return value, sizes, *reference_points, *others, list(problem.num_points or ())


# -- opcheck -----------------------------------------------------------------------------------


def _subsets(form: str, count: int) -> list[tuple[bool, ...]]:
    """Which inputs ask for a gradient: several choices for points, all inputs for other forms."""
    return subsets(count)[1:] if form == "points" else [(True,) * count]


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_forward(form: str) -> None:
    problem = draw(form, dtype=torch.float64)
    for wanted in [(False,) * 4, *_subsets(form, len(names(form)))]:
        args = asking(_op_inputs(problem, form), wanted)
        torch.library.opcheck(_ops.st_deform_attn, args)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_backward(form: str) -> None:
    problem = draw(form, dtype=torch.float64)
    inputs = _op_inputs(problem, form)
    for needs in _subsets(form, len(names(form))):
        # In the order of the inputs; without reference points nothing of them is needed.
        every = needs if len(needs) == 4 else (needs[0], False, *needs[1:])
        args = (problem.grad_out, *inputs, list(every))
        torch.library.opcheck(_ops.st_deform_attn_backward, args)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_backward_of_backward(form: str) -> None:
    # The plain second derivative is long to trace; an image with one level is enough.
    problem = draw(form, [(3, 2)], num_queries=2, num_points=1, dtype=torch.float64)
    inputs = (problem.grad_out, *_op_inputs(problem, form))
    args = (*asking(inputs, (True,) * (len(inputs) - 2)), [True, form != "locations", True, True])
    torch.library.opcheck(_ops.st_deform_attn_backward, args)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_points_per_level(form: str) -> None:
    problem = draw(form, num_points=(1, 4), dtype=torch.float64)
    inputs = _op_inputs(problem, form)
    torch.library.opcheck(_ops.st_deform_attn, asking(inputs, (True,) * 4))
    args = (problem.grad_out, *inputs, [True, form != "locations", True, True])
    torch.library.opcheck(_ops.st_deform_attn_backward, args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_opcheck_mixed_dtypes(dtype: torch.dtype) -> None:
    problem = draw("boxes", dtype=dtype, side_dtype=torch.float32)
    args = asking(_op_inputs(problem, "boxes"), (True,) * 4)
    torch.library.opcheck(_ops.st_deform_attn, args)


# -- fake and meta -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_meta_tensors(form: str) -> None:
    problem = draw(form, dtype=torch.bfloat16, side_dtype=torch.float32)
    problem = problem.map(lambda tensor: tensor.to("meta"))
    likes = [problem.grad_out, *tensors(arguments(problem, form))]
    for found, like in zip(results(problem, form, "auto"), likes, strict=True):
        assert found.device.type == "meta"
        assert (found.shape, found.dtype) == (like.shape, like.dtype)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_the_kernel_refuses_a_tensor_without_memory() -> None:
    """A fake tensor that reaches the core by mistake is an error, not a crash."""
    problem = draw("locations")
    with torch._subclasses.FakeTensorMode() as mode, warnings.catch_warnings():
        fake = [mode.from_tensor(tensor) for tensor in tensors(problem.attention)]
        # torch warns of the address that it is about to give as zero
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="value has no memory: a fake or meta tensor"):
            _native.forward(fake[0], [4, 6, 5, 2, 3, 3], None, fake[1], fake[2], [])
