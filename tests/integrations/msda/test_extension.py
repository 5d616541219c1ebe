"""The extension's functions: results, gradients, dtypes, devices of shapes, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stdeform import _native, _ops, level_starts, reference
from stdeform.integrations import msda
from stdeform.integrations.msda.extension import ms_deform_attn_backward, ms_deform_attn_forward
from stdeform.testing import Problem, assert_close, composite, make_problem
from tests.support.integers_on_gpu import IntegersOnGpu

SHAPES = {"image": [(4, 5), (2, 3)], "video": [(2, 3, 4), (1, 2, 2)]}
on_both_axes = pytest.mark.parametrize("axes", SHAPES)

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]


def problem(axes: str, **settings: Any) -> Problem:
    settings = {"num_queries": 3, "head_dim": 4, "kink_margin": 0.1, **settings}
    return make_problem(SHAPES[axes], **settings)


def arguments(drawn: Problem) -> Arguments:
    """The six of the forward, as the extension takes them."""
    shapes = torch.tensor(drawn.spatial_shapes)
    starts = torch.tensor(level_starts(drawn.spatial_shapes))
    return drawn.value, shapes, starts, drawn.sampling_locations, drawn.attention_weights, 64


def expected(drawn: Problem) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Result and gradients in float64, by grid_sample."""
    exact = drawn.to(torch.float64).requires_grad_()
    value, _, locations, weights = exact.attention
    out = composite(*exact.attention)
    return out, torch.autograd.grad(out, (value, locations, weights), exact.grad_out)


# -- results and gradients ---------------------------------------------------------------------


@on_both_axes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_results_and_gradients(
    on_cpu: str, axes: str, dtype: torch.dtype, monkeypatch: Any
) -> None:
    if on_cpu == "reference":
        monkeypatch.setattr(_native, "missing", lambda device_type: "it is hidden")
        monkeypatch.setattr("stdeform.functional._warned", {"cpu"})
    drawn = problem(axes, dtype=dtype)
    value, shapes, starts, locations, weights, step = arguments(drawn)
    out = ms_deform_attn_forward(value, shapes, starts, locations, weights, step)
    grads = ms_deform_attn_backward(value, shapes, starts, locations, weights, drawn.grad_out, step)
    want, wanted = expected(drawn)
    assert_close(out, want, "forward")
    for got, grad in zip(grads, wanted, strict=True):
        assert got.dtype == dtype
        assert_close(got, grad, "gradient")


@on_both_axes
@pytest.mark.parametrize("batch", [0, 1, 3, 70])
def test_any_batch(axes: str, batch: int) -> None:
    drawn = problem(axes, batch=batch)
    args = arguments(drawn)
    out = ms_deform_attn_forward(*args)
    assert_close(out, composite(*drawn.attention).double(), "forward")
    grads = ms_deform_attn_backward(*args[:5], drawn.grad_out, 64)
    for got, want in zip(grads, expected(drawn)[1], strict=True):
        assert got.shape == want.shape
        assert_close(got, want, "gradient")


@on_both_axes
def test_no_queries(axes: str) -> None:
    drawn = problem(axes, num_queries=0)
    args = arguments(drawn)
    assert ms_deform_attn_forward(*args).shape == (2, 0, 8)
    grads = ms_deform_attn_backward(*args[:5], drawn.grad_out, 64)
    assert [grad.shape for grad in grads] == [args[0].shape, args[3].shape, args[4].shape]
    assert not grads[0].any()


def test_one_axis() -> None:
    """Sequences give the bits of images of one row."""
    drawn = make_problem([(5,), (3,)], num_queries=3, head_dim=4)
    value, shapes, starts, locations, weights, step = arguments(drawn)
    of_images = (
        *(value, torch.cat([torch.ones_like(shapes), shapes], 1), starts),
        *(F.pad(locations, (0, 1), value=0.5), weights),
    )
    sequences = (value, shapes, starts, locations, weights)
    out, as_image = (ms_deform_attn_forward(*args, step) for args in (sequences, of_images))
    assert torch.equal(out, as_image)
    found, expected = (
        ms_deform_attn_backward(*args, drawn.grad_out, step) for args in (sequences, of_images)
    )
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want[..., : got.shape[-1]])


def _by_function(*args: Any) -> Tensor:
    return msda.MSDeformAttnFunction.apply(*args)


def _by_core(value: Tensor, shapes: Tensor, _: Tensor, *others: Any) -> Tensor:
    return msda.ms_deform_attn_core_pytorch_3D(value, shapes, *others[:2])


class _Client(torch.autograd.Function):
    """What client code writes around the two functions."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, ctx.step = args
        ctx.save_for_backward(*tensors)
        return ms_deform_attn_forward(*tensors, ctx.step)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ms_deform_attn_backward(*ctx.saved_tensors, grad_out, ctx.step)
        return value, None, None, locations, weights, None


@on_both_axes
@pytest.mark.parametrize("call", [_by_function, _by_core, _Client.apply])
def test_first_and_second_derivatives(axes: str, call: Callable[..., Tensor]) -> None:
    drawn = problem(axes, batch=1, num_queries=2, dtype=torch.float64).requires_grad_()
    args = arguments(drawn)
    assert torch.autograd.gradcheck(call, args)
    assert torch.autograd.gradgradcheck(call, args, fast_mode=True)


@pytest.mark.usefixtures("needs_native")
def test_the_backward_does_not_run_the_forward(monkeypatch: Any) -> None:
    drawn = problem("image")
    args = arguments(drawn)
    grads = ms_deform_attn_backward(*args[:5], drawn.grad_out, 64)

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the forward ran")

    monkeypatch.setattr(_native, "forward", refuse)
    monkeypatch.setattr(_ops, "st_deform_attn", refuse)
    monkeypatch.setattr(reference, "attend", refuse)
    again = ms_deform_attn_backward(*args[:5], drawn.grad_out, 64)
    assert all(map(torch.equal, grads, again))


# -- dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize(
    ("dtypes", "promoted"),
    [
        ((torch.float32, torch.bfloat16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float32, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16, torch.float16), torch.float32),
        ((torch.float32, torch.float64, torch.float32), torch.float64),
        ((torch.bfloat16, torch.bfloat16, torch.bfloat16), torch.bfloat16),
    ],
    ids=str,
)
def test_mixed_dtypes_are_promoted(
    dtypes: tuple[torch.dtype, ...], promoted: torch.dtype, autocast: bool
) -> None:
    drawn = problem("image")
    value, shapes, starts, locations, weights, step = arguments(drawn)
    mixed = [
        tensor.to(dtype) for tensor, dtype in zip((value, locations, weights), dtypes, strict=True)
    ]
    args = mixed[0], shapes, starts, *mixed[1:]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = ms_deform_attn_forward(*args, step)
        grads = ms_deform_attn_backward(*args, drawn.grad_out, step)
    assert out.dtype == promoted
    assert [grad.dtype for grad in grads] == [*dtypes]
    wide = [tensor.to(promoted) for tensor in mixed]
    assert torch.equal(out, ms_deform_attn_forward(wide[0], shapes, starts, *wide[1:], step))


# -- shapes ------------------------------------------------------------------------------------


@on_both_axes
def test_shapes_as_a_tensor_of_any_device_or_as_rows(
    axes: str, shapes_on_gpu: IntegersOnGpu
) -> None:
    drawn = problem(axes)
    value, shapes, starts, locations, weights, step = arguments(drawn)
    want = ms_deform_attn_forward(value, drawn.spatial_shapes, None, locations, weights, step)
    for _ in range(3):
        assert torch.equal(
            ms_deform_attn_forward(value, shapes, starts, locations, weights, step), want
        )
        ms_deform_attn_backward(value, shapes, starts, locations, weights, drawn.grad_out, step)
    assert len(shapes_on_gpu.reads) == 1


def test_starts_on_a_device_are_trusted(shapes_on_gpu: IntegersOnGpu) -> None:
    value, shapes, _, *others = arguments(problem("image"))
    ms_deform_attn_forward(value, shapes, torch.tensor([5, 5]), *others)


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "changed", "error", "message"),
    [
        (0, None, TypeError, "value must be a Tensor, got NoneType"),
        (
            0,
            torch.ones(2, 26, 2, 4).long(),
            TypeError,
            "value must be of a floating-point dtype, g",
        ),
        (0, torch.ones(2, 25, 2, 4), ValueError, "as spatial_shapes has cells, 26, got 25"),
        (1, torch.tensor([(2, 3, 4), (1, 1, 2)]), ValueError, "spatial_shapes rows must be (H, W)"),
        (1, torch.tensor([4.0]), TypeError, "spatial_shapes must hold integers, got torch.float32"),
        (1, [(4, 5)], ValueError, "value must have as many rows as spatial_shapes has cells, 20"),
        (
            2,
            torch.tensor([0, 21]),
            ValueError,
            "level_start_index must be [0, 20] to match spatial_s",
        ),
        (
            2,
            [6, 0],
            ValueError,
            "level_start_index must be [0, 20] to match spatial_shapes, got [6",
        ),
        (
            3,
            torch.ones(2, 3, 2, 2, 3, 2).long(),
            TypeError,
            "sampling_loc must be of a floating-poi",
        ),
        (4, [1.0], TypeError, "attn_weight must be a Tensor, got list"),
        (5, None, TypeError, "grad_output must be a Tensor, got NoneType"),
        (
            5,
            torch.ones(2, 3, 2, 4),
            ValueError,
            "grad_output must have shape [2, 3, 8] to match val",
        ),
        (
            5,
            torch.ones(2, 3, 8, device="meta"),
            ValueError,
            "grad_output must be on value's device",
        ),
    ],
)
def test_errors(at: int, changed: Any, error: type[Exception], message: str) -> None:
    drawn = problem("image")
    args: list[Any] = [*arguments(drawn)[:5], drawn.grad_out, 64]
    args[at] = changed
    with pytest.raises(error, match=re.escape(message)):
        ms_deform_attn_backward(*args)
    if at < 5:
        with pytest.raises(error, match=re.escape(message)):
            ms_deform_attn_forward(*args[:5], 64)
