"""What the tests run over, and how: backends, dtypes, forms; operator, baseline, oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import stdeform
from stdeform import _native
from stdeform.testing import Problem, assert_close, composite, composite_from_offsets, make_problem
from tests.support import backends, oracle

# A bare "native" is skipped with the reason why there is no kernel.
NATIVE = [f"native-{isa}" for isa in _native.usable_isas()] or ["native"]
# All kernels: the CPU's; the CUDA sources, emulated on arrays; the library's CUDA branch, on a GPU
# or on the emulated one.
KERNELS = [*NATIVE, "emulated", "cuda"]
BACKENDS = ["reference", *KERNELS]

FORMS = ("locations", "points", "boxes")
VIDEO: tuple[tuple[int, ...], ...] = ((4, 6, 5), (2, 3, 3))
IMAGE: tuple[tuple[int, ...], ...] = ((6, 5), (3, 3))
AXES = {"video": VIDEO, "image": IMAGE}

_SHORT = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
# Value's dtype and that of all other inputs.
DTYPES = {
    name: (_SHORT[name.split("-")[0]], _SHORT[name.split("-")[-1]])
    for name in ("f64", "f64-f32", "f32", "f16", "f16-f32", "bf16", "bf16-f32")
}

Operator = Callable[..., Tensor]


def draw(form: str, spatial_shapes: Sequence[Sequence[int]] = VIDEO, **settings: Any) -> Problem:
    """A small problem of one of `FORMS`, its points off the kinks."""
    settings = {"kink_margin": 0.1, "boxes": form == "boxes", **settings}
    return make_problem(spatial_shapes, **settings)


def arguments(problem: Problem, form: str) -> tuple[Any, ...]:
    """The arguments of the operator of this form."""
    return problem.attention if form == "locations" else problem.from_offsets


def operator(form: str, backend: str = "auto") -> Operator:
    """The operator of this form; "baseline", "emulated", "cuda" and "cross" are backends too."""
    if backend == "baseline":
        return composite if form == "locations" else composite_from_offsets
    if backend == "emulated":
        return backends.on_emulator(form)
    if backend == "cuda":
        return backends.on_gpu(form)
    if backend == "cross":
        return backends.cross_compiled(form)
    function = (
        stdeform.st_deform_attn if form == "locations" else stdeform.st_deform_attn_from_offsets
    )
    return functools.partial(function, backend=backend)  # type: ignore[arg-type]


def names(form: str) -> tuple[str, ...]:
    """The names of the tensors of this form, in their order."""
    if form == "locations":
        return "value", "sampling_locations", "attention_weights"
    return "value", "reference_points", "sampling_offsets", "attention_logits"


def tensors(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments."""
    return [arg for arg in args if isinstance(arg, Tensor)]


def forward(problem: Problem, form: str, backend: str) -> Tensor:
    """The operator's result without gradients."""
    with torch.no_grad():
        return operator(form, backend)(*arguments(problem, form), num_points=problem.num_points)


def gradients(problem: Problem, form: str, backend: str) -> tuple[Tensor, ...]:
    """The gradients of all tensors of the form, for `problem.grad_out`."""
    args = [
        arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg
        for arg in arguments(problem, form)
    ]
    out = operator(form, backend)(*args, num_points=problem.num_points)
    return torch.autograd.grad(out, tensors(args), problem.grad_out)


def results(problem: Problem, form: str, backend: str) -> list[Tensor]:
    """The result without gradients, then the gradients."""
    return [forward(problem, form, backend), *gradients(problem, form, backend)]


def oracle_forward(problem: Problem, form: str) -> Tensor:
    """The scalar loop's result in float64."""
    function = oracle.st_deform_attn if form == "locations" else oracle.st_deform_attn_from_offsets
    return torch.from_numpy(function(*_arrays(arguments(problem, form)), problem.num_points))


def oracle_gradients(problem: Problem, form: str) -> tuple[Tensor, ...]:
    """The scalar loop's gradients in float64."""
    function: Callable[..., Any] = (
        oracle.st_deform_attn_grads
        if form == "locations"
        else oracle.st_deform_attn_from_offsets_grads
    )
    grads = function(*_arrays([problem.grad_out, *arguments(problem, form)]), problem.num_points)
    return tuple(torch.from_numpy(grad) for grad in grads)


def oracle_results(problem: Problem, form: str) -> list[Tensor]:
    """The scalar loop's result and gradients."""
    return [oracle_forward(problem, form), *oracle_gradients(problem, form)]


def assert_gradients_close(actual: Sequence[Tensor], expected: Sequence[Tensor], form: str) -> None:
    """Compares each gradient with its float64 oracle."""
    for name, got, want in zip(names(form), actual, expected, strict=True):
        assert_close(got, want, "gradient", f"gradient of {name}")


def assert_results_close(actual: Sequence[Tensor], expected: Sequence[Tensor], form: str) -> None:
    """Compares `results` with those of a float64 oracle."""
    assert_close(actual[0], expected[0], "forward")
    assert_gradients_close(actual[1:], expected[1:], form)


def check_against_oracle(problem: Problem, form: str, backend: str) -> None:
    """Compares result and gradients with the scalar loop."""
    assert_results_close(results(problem, form, backend), oracle_results(problem, form), form)


def check_against_baseline(problem: Problem, form: str, backend: str) -> None:
    """Compares result and gradients with the grid_sample baseline in float64."""
    expected = results(problem.to(torch.float64), form, "baseline")
    assert_results_close(results(problem, form, backend), expected, form)


def _arrays(args: Sequence[Any]) -> list[Any]:
    return [arg.detach().double().numpy() if isinstance(arg, Tensor) else arg for arg in args]


def asking(args: Sequence[Any], wanted: Sequence[bool]) -> tuple[Any, ...]:
    """Copies of an operator's arguments; the wanted tensors require gradients."""
    asks = iter(wanted)
    return tuple(
        arg.detach().clone().requires_grad_(next(asks)) if isinstance(arg, Tensor) else arg
        for arg in args
    )


def subsets(count: int) -> list[tuple[bool, ...]]:
    """None, each alone, all but each, all: of `count` inputs."""
    each = [tuple(i == j for j in range(count)) for i in range(count)]
    return [(False,) * count, *each, *(tuple(not x for x in one) for one in each), (True,) * count]
