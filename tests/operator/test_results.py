"""Result and gradients of every backend, compared with oracles."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from stdeform.testing import LAYOUTS, Layout, Problem, assert_close, with_layout
from tests.cuda.emulated_gpu import HAS_GPU
from tests.support.cases import (
    AXES,
    DTYPES,
    FORMS,
    IMAGE,
    NATIVE,
    VIDEO,
    arguments,
    assert_results_close,
    check_against_baseline,
    check_against_oracle,
    draw,
    forward,
    names,
    oracle_forward,
    oracle_results,
    results,
    tensors,
)


@functools.cache
def _with_oracle(form: str, axes: str, dtype: str) -> tuple[Problem, list[Tensor]]:
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw(form, AXES[axes], dtype=value_dtype, side_dtype=side_dtype)
    return problem, oracle_results(problem, form)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("form", FORMS)
def test_dtypes(backend: str, form: str, axes: str, dtype: str) -> None:
    problem, expected = _with_oracle(form, axes, dtype)
    found = results(problem, form, backend)
    inputs = tensors(arguments(problem, form))
    assert [tensor.dtype for tensor in found] == [inputs[0].dtype, *(t.dtype for t in inputs)]
    assert found[0].is_contiguous()
    assert_results_close(found, expected, form)


# -- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize("head_dim", [1, 3, 5, 8, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 130])
def test_head_dims(kernel: str, head_dim: int, dtype: str) -> None:
    for form, shapes in (("points", VIDEO), ("locations", IMAGE)):
        problem = draw(form, shapes, head_dim=head_dim, dtype=DTYPES[dtype][0])
        check_against_baseline(problem, form, kernel)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1, 1)],
        [(1, 1)],
        [(1, 7, 1), (5, 1, 1), (1, 1, 9)],
        [(8, 9), (4, 5), (2, 3), (1, 1)],
        [(3, 40, 2)],
    ],
    ids=str,
)
def test_level_shapes(backend: str, shapes: list[tuple[int, ...]]) -> None:
    for form in FORMS:
        check_against_baseline(draw(form, shapes), form, backend)


@pytest.mark.parametrize("num_points", [1, 2, 31, 64, 65, 200])
def test_numbers_of_points(kernel: str, num_points: int) -> None:
    # Around and past the size of the kernel's chunk of samples, across levels too.
    for form in ("points", "boxes"):
        problem = draw(form, num_points=num_points, num_queries=3, dtype=torch.float64)
        check_against_baseline(problem, form, kernel)


@pytest.mark.parametrize(
    ("batch", "num_heads", "num_queries"), [(1, 1, 1), (1, 5, 500), (3, 1, 500), (3, 5, 1)]
)
def test_few_and_many_samples_per_cell(
    kernel: str, batch: int, num_heads: int, num_queries: int
) -> None:
    # Of 500 queries, a gradient of the value sums some 600 terms.
    sizes = {"batch": batch, "num_heads": num_heads, "num_queries": num_queries}
    for head_dim in (16, 20):
        check_against_baseline(draw("points", **sizes, head_dim=head_dim), "points", kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f64-f32", "f32", "bf16"])
def test_fewer_than_two_corners_per_cell(native: str, dtype: str, layout: Layout) -> None:
    """Then the CPU kernels read the value where it is, if a row is a whole number of vectors."""
    value_dtype, side_dtype = DTYPES[dtype]
    dtypes = {"dtype": value_dtype, "side_dtype": side_dtype}
    for form in FORMS:
        for shapes in ([(4, 12, 10), (1, 1, 2)], [(24, 20), (1, 1)]):
            problem = draw(form, shapes, num_queries=9, head_dim=32, **dtypes)
            check_against_baseline(problem.laid_out(layout), form, native)


@pytest.mark.parametrize(
    ("batch", "num_queries"), [(0, 7), (2, 0), (0, 0)], ids=["B=0", "Q=0", "B=Q=0"]
)
@pytest.mark.parametrize("form", FORMS)
def test_empty(backend: str, form: str, batch: int, num_queries: int) -> None:
    problem = draw(form, batch=batch, num_queries=num_queries, dtype=torch.float16)
    out, *grads = results(problem, form, backend)
    assert out.shape == (batch, num_queries, 32)
    assert out.dtype == torch.float16
    for grad, tensor in zip(grads, tensors(arguments(problem, form)), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


# -- memory layouts ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("dtype", ["f32", "bf16-f32"])
@pytest.mark.parametrize("form", FORMS)
def test_layouts(kernel: str, form: str, dtype: str, layout: Layout) -> None:
    """Of all tensors, then of each alone."""
    value_dtype, side_dtype = DTYPES[dtype]
    problem = draw(form, dtype=value_dtype, side_dtype=side_dtype)
    check_against_baseline(problem.laid_out(layout), form, kernel)
    for name in (*names(form), "grad_out"):
        strided = with_layout(getattr(problem, name), layout)
        check_against_baseline(dataclasses.replace(problem, **{name: strided}), form, kernel)


@pytest.mark.parametrize("stride", [1, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_one_point_may_have_any_stride(kernel: str, form: str, stride: int) -> None:
    """Up to 2.9, PyTorch gives DLPack a stride of 1 for each axis of size 1."""
    problem = draw(form, num_points=1)
    changes = {}
    for name in names(form)[-2:]:
        samples = getattr(problem, name)
        strides = [*samples.stride()]
        strides[4] = stride
        changes[name] = samples.as_strided(samples.shape, strides)
    check_against_baseline(dataclasses.replace(problem, **changes), form, kernel)


def test_large_gradients(native: str) -> None:
    """Those of at least 4 MB are written past the cache, as those of halves of the queries are not.

    The queries are more than 1 KB apart, so the forward prefetches them.
    """
    sizes = {"batch": 1, "num_heads": 8, "num_queries": 4096, "head_dim": 4, "num_points": 32}
    whole = draw("points", [(2, 3, 4)], **sizes)
    assert whole.attention_logits.nbytes >= 4 << 20
    found = results(whole, "points", native)
    halves = []
    for half in (slice(2048), slice(2048, None)):
        of_queries = {name: getattr(whole, name)[:, half] for name in names("points")[1:]}
        part = dataclasses.replace(whole, **of_queries, grad_out=whole.grad_out[:, half])
        halves.append(results(part, "points", native))
    for index in (0, 2, 3, 4):  # the result, and the gradients of all but the value
        expected = torch.cat([half[index] for half in halves], 1)
        assert torch.equal(found[index], expected)


def test_expanded_channels(backend: str) -> None:
    """A value of one number per row, and the gradient that a sum of all results passes back."""
    problem = draw("points")
    value = problem.value[..., :1].expand_as(problem.value)
    ones = torch.ones(()).expand_as(problem.grad_out)
    expanded = dataclasses.replace(problem, value=value, grad_out=ones)
    check_against_baseline(expanded, "points", backend)


def test_inputs_are_left_alone(backend: str) -> None:
    for form in FORMS:
        problem = draw(form)
        before = problem.map(torch.clone)
        results(problem, form, backend)
        for name in (*names(form), "grad_out"):
            assert torch.equal(getattr(problem, name), getattr(before, name))


# -- logits ------------------------------------------------------------------------------------


def test_large_logits_do_not_overflow(backend: str) -> None:
    problem = draw("points")
    for shift in (-1e4, 1e4):
        moved = dataclasses.replace(problem, attention_logits=problem.attention_logits + shift)
        check_against_oracle(moved, "points", backend)


def test_logits_of_minus_infinity_switch_points_off(backend: str) -> None:
    problem = draw("points")
    problem.attention_logits[..., 1:, :] = -torch.inf
    check_against_oracle(problem, "points", backend)


# -- sizes past 2^31 ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [
        *NATIVE,
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not HAS_GPU, reason="needs a GPU: a million blocks are many"),
        ),
    ],
    indirect=True,
)
def test_more_than_two_to_the_31_elements(kernel: str) -> None:
    """An expanded value of 2^31 + 2^27 elements, one row of memory for all its heads."""
    heads, head_dim, shape = 2**20 + 2**16, 16, (2, 8, 8)
    small = draw("points", [shape], batch=1, num_queries=1, num_heads=2, num_points=1)
    at = torch.arange(heads) % 2
    problem = dataclasses.replace(
        small,
        value=small.value[:, :, :1].expand(-1, -1, heads, -1),
        sampling_offsets=small.sampling_offsets[:, :, at],
        attention_logits=small.attention_logits[:, :, at],
    )
    assert problem.value.numel() > 2**31
    out = forward(problem, "points", kernel).view(heads // 2, 2 * head_dim)
    same = dataclasses.replace(small, value=small.value[:, :, :1].expand(-1, -1, 2, -1))
    assert_close(out[:1], oracle_forward(same, "points")[0], "forward")
    assert torch.equal(out, out[:1].expand_as(out))


@pytest.mark.parametrize("axis", ["batch", "cells", "heads"])
def test_strides_past_two_to_the_31(backend: str, axis: str) -> None:
    """Cells more than 2^31 elements apart, in memory that is never touched between."""
    small = draw("points", [(2, 2, 2)], dtype=torch.bfloat16, head_dim=16)
    dim = {"batch": 0, "cells": 1, "heads": 2}[axis]
    strides = list(small.value.stride())
    strides[dim] = 2**31 // (small.value.shape[dim] - 1) + small.value.numel()
    try:
        value = torch.empty_strided(small.value.shape, strides, dtype=torch.bfloat16)
    except RuntimeError as refused:
        pytest.skip(f"this machine does not lend 4 GiB of address space: {refused}")
    far = dataclasses.replace(small, value=value.copy_(small.value))
    assert torch.equal(forward(far, "points", backend), forward(small, "points", backend))
