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
    forward,
    gradients,
    names,
    subsets,
    tensors,
)

pytestmark = pytest.mark.usefixtures("needs_native")


def _op_inputs(problem: Problem, form: str) -> tuple[Any, ...]:
    """The arguments of the registered operator."""
    shapes = [size for row in problem.spatial_shapes for size in row]
    if form == "locations":
        return (
            problem.value,
            shapes,
            None,
            problem.sampling_locations,
            problem.attention_weights,
        )
    return (
        problem.value,
        shapes,
        problem.reference_points,
        problem.sampling_offsets,
        problem.attention_logits,
    )


# -- opcheck -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_forward(form: str) -> None:
    problem = draw(form, dtype=torch.float64)
    for wanted in subsets(len(names(form))):
        args = asking(_op_inputs(problem, form), wanted)
        torch.library.opcheck(_ops.st_deform_attn, args)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_backward(form: str) -> None:
    problem = draw(form, dtype=torch.float64)
    inputs = _op_inputs(problem, form)
    count = len(names(form))
    for needs in subsets(count)[1:]:
        # In the order of the inputs; without reference points nothing of them is needed.
        every = needs if count == 4 else (needs[0], False, *needs[1:])
        args = (problem.grad_out, *inputs, list(every))
        torch.library.opcheck(_ops.st_deform_attn_backward, args)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_backward_of_backward(form: str) -> None:
    # The plain second derivative is long to trace; an image with one level is enough.
    problem = draw(form, [(3, 2)], num_queries=2, num_points=1, dtype=torch.float64)
    inputs = (problem.grad_out, *_op_inputs(problem, form))
    needs = [True, form != "locations", True, True]
    every = subsets(len(names(form)) + 1)[1:]
    for wanted in every:
        args = (*asking(inputs, wanted), needs)
        tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if wanted in (every[0], every[-1]):
            tests.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(_ops.st_deform_attn_backward, args, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_opcheck_mixed_dtypes(dtype: torch.dtype) -> None:
    problem = draw("boxes", dtype=dtype, side_dtype=torch.float32)
    args = asking(_op_inputs(problem, "boxes"), (True,) * 4)
    torch.library.opcheck(_ops.st_deform_attn, args)


def test_schemas_mutate_nothing() -> None:
    for op in (_ops.st_deform_attn, _ops.st_deform_attn_backward):
        assert not op._schema.is_mutable
        assert torch.Tag.pt2_compliant_tag in op.tags


# -- fake and meta -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_fake_tensors(form: str) -> None:
    with torch._subclasses.FakeTensorMode():
        problem = draw(form, dtype=torch.bfloat16, side_dtype=torch.float32)
        out = forward(problem, form, "native")
        assert out.shape == (2, 7, 32)
        assert out.dtype == torch.bfloat16
        for grad, tensor in zip(
            gradients(problem, form, "native"), tensors(arguments(problem, form)), strict=True
        ):
            assert grad.shape == tensor.shape
            assert grad.dtype == tensor.dtype


@pytest.mark.parametrize("form", FORMS)
def test_meta_tensors(form: str) -> None:
    problem = draw(form).map(lambda tensor: tensor.to("meta"))
    out = forward(problem, form, "auto")
    assert out.shape == (2, 7, 32)
    assert out.device.type == "meta"
    for grad, tensor in zip(
        gradients(problem, form, "auto"), tensors(arguments(problem, form)), strict=True
    ):
        assert grad.shape == tensor.shape


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_the_kernel_refuses_a_tensor_without_memory() -> None:
    """A fake tensor that reaches the core by mistake is an error, not a crash."""
    problem = draw("locations")
    with torch._subclasses.FakeTensorMode() as mode, warnings.catch_warnings():
        fake = [mode.from_tensor(tensor) for tensor in tensors(problem.attention)]
        # torch warns of the address that it is about to give as zero
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="value has no memory: a fake or meta tensor"):
            _native.forward(fake[0], [4, 6, 5, 2, 3, 3], None, fake[1], fake[2])
