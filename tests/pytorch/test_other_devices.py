"""Tensors of devices without a kernel, MPS, XPU and ROCm: what is computed, and what is said.

The devices are stand-ins that refuse what a real one would; see tests/support/other_device.py.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import stdeform
from stdeform import _native, _ops, functional, reference_grid, valid_ratios
from stdeform.testing import Problem, assert_close, excess
from tests.support import native_functions, other_device
from tests.support.cases import FORMS, IMAGE, VIDEO, draw, operator, results, tensors
from tests.support.layers import LAYERS, inputs, trained
from tests.support.other_device import OtherDevice, read

SEQUENCE: tuple[tuple[int, ...], ...] = ((7,), (4,))
DTYPES: tuple[dict[str, Any], ...] = (
    {"dtype": torch.float32, "num_points": [2, 3]},
    {"dtype": torch.float16},
    {"dtype": torch.bfloat16, "side_dtype": torch.float32},
)


@pytest.fixture(autouse=True)
def warned(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The device types that have been warned of, so that no test has to expect it."""
    types = {"mps", "xpu", "cuda"}
    monkeypatch.setattr(functional, "_warned", types)
    return types


@pytest.fixture(params=["mps", "xpu"])
def device(request: pytest.FixtureRequest) -> OtherDevice:
    return OtherDevice(request.param)


def _moved(problem: Problem, device: OtherDevice) -> Problem:
    return problem.map(lambda tensor: tensor.to(device.device))


def _assert_same(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Of the same bits, and still on the device."""
    for one, other in zip(got, want, strict=True):
        assert torch.equal(read(one), other.detach())


# -- the operators -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["mps"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes", [SEQUENCE, IMAGE, VIDEO], ids=["N = 1", "N = 2", "N = 3"])
def test_results_and_gradients(form: str, shapes: Any, device: OtherDevice) -> None:
    """Each dtype with each form, and with each number of axes."""
    turn = FORMS.index(form) + len(shapes[0])
    problem = draw(form, shapes, **DTYPES[turn % len(DTYPES)])
    with device:
        got = results(_moved(problem, device), form, "auto")
    _assert_same(got, results(problem, form, "reference"))


def test_second_derivatives(device: OtherDevice) -> None:
    def derive(problem: Problem, backend: str) -> tuple[Tensor, ...]:
        args = problem.requires_grad_().from_offsets
        out = operator("points", backend)(*args)
        grads = torch.autograd.grad(out, tensors(args), problem.grad_out, create_graph=True)
        return torch.autograd.grad(grads[0].square().sum() + grads[2].sum(), tensors(args))

    problem = draw("points")
    with device:
        got = derive(_moved(problem, device), "auto")
    _assert_same(got, derive(problem, "reference"))


def test_autocast(device: OtherDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.device.type == "mps":
        spec = importlib.util.find_spec("stdeform._dispatch")
        dispatch = importlib.util.module_from_spec(spec)
        with monkeypatch.context() as on_a_mac:
            on_a_mac.setattr(torch.backends.mps, "is_built", lambda: True)
            spec.loader.exec_module(dispatch)
        monkeypatch.setattr(functional, "_dispatch", dispatch)
    problem = draw("boxes", side_dtype=torch.float16)
    with device, torch.autocast(device.device.type, torch.bfloat16):
        out = operator("boxes")(*_moved(problem, device).from_offsets)
    with torch.autocast("cpu", torch.bfloat16):
        want = operator("boxes", "reference")(*problem.from_offsets)
    assert out.dtype is torch.bfloat16
    _assert_same([out], [want])


def test_close_to_an_oracle_of_the_cpu(device: OtherDevice) -> None:
    """`stdeform.testing` compares in float64, which the device has not."""
    problem = draw("points")
    oracle = operator("points", "reference")(*problem.to(torch.float64).from_offsets)
    with device:
        out = operator("points")(*_moved(problem, device).from_offsets)
        device.readable = True
        assert_close(out, oracle, "forward")


def test_it_may_be_the_default_device(device: OtherDevice) -> None:
    """Tensors of the CPU stay there, and so does what is drawn for tests."""
    with device, torch.device(device.device):
        problem = draw("boxes", num_points=[2, 3])
        got = results(problem, "boxes", "reference")
    assert all(tensor.is_cpu for tensor in (*got, problem.value))


def test_results_of_cuda_are_compared_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number leaves the device: large results take seconds on the way."""
    monkeypatch.setattr(other_device, "_REFUSED", ())  # CUDA has float64
    oracle = torch.rand(50, dtype=torch.float64)
    with OtherDevice("cuda") as device:
        device.readable = True
        there = oracle.float().to(device.device)
        assert_close(there, oracle, "forward")
        assert excess(1.01 * there, oracle, "forward") > 1
    assert device.reads == 2
    assert "sqrt" in device.operators


# -- the layers --------------------------------------------------------------------------------


def _pair(axes: str, num_points: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Two layers of the same weights, the second with the reference as its backend."""
    layer = trained(LAYERS[axes][0](num_points)).to(dtype)
    other = copy.deepcopy(layer)
    other.backend = "reference"
    return layer, other


def _layer_results(axes: str, layer: Any, device: torch.device) -> list[Tensor]:
    """Result and gradients on the device, with boxes and a padding mask."""
    query, points, value, shapes = inputs(axes, boxes=True)
    dtype = layer.value_proj.weight.dtype
    mask = (torch.arange(value.shape[0] * value.shape[1]) % 5 == 0).view(value.shape[:2]).to(device)
    leaves = [
        tensor.to(device).requires_grad_() for tensor in (query.to(dtype), points, value.to(dtype))
    ]
    out = layer(*leaves, shapes, *((mask,) if axes == "video" else (None, mask)))
    return [out, *torch.autograd.grad(out, [*leaves, *layer.parameters()], torch.ones_like(out))]


@pytest.mark.parametrize(("axes", "dtype"), [("video", torch.float32), ("image", torch.bfloat16)])
def test_layers(axes: str, dtype: torch.dtype, device: OtherDevice) -> None:
    layer, other = _pair(axes, [2, 3], dtype)
    with device:
        got = _layer_results(axes, layer.to(device.device), device.device)
    _assert_same(got, _layer_results(axes, other, torch.device("cpu")))


@pytest.mark.parametrize("axes", LAYERS)
def test_layers_that_are_made_there(axes: str, device: OtherDevice) -> None:
    with device, torch.device(device.device):
        bias = LAYERS[axes][0]().sampling_offsets.bias
    _assert_same([bias], [LAYERS[axes][0]().sampling_offsets.bias])


def test_a_level_table_there_is_read_once(device: OtherDevice) -> None:
    query, points, value, shapes = inputs("image")
    layer, other = _pair("image", 3)
    want = other(query, points, value, shapes)
    with device:
        layer.to(device.device)
        table, starts = (torch.tensor(rows).to(device.device) for rows in (shapes, [7, 7]))
        args = [tensor.to(device.device) for tensor in (query, points, value)]
        device.readable = True
        for _ in range(2):
            _assert_same([layer(*args, table, starts)], [want])
    assert device.reads == 1


def test_reference_grids(device: OtherDevice) -> None:
    masks = [torch.zeros(2, *shape, dtype=torch.bool) for shape in VIDEO]
    for mask in masks:
        mask[0, -1:] = mask[1, :, :, -1:] = True

    def grids(masks: list[Tensor]) -> list[Tensor]:
        ratios = torch.stack([valid_ratios(mask) for mask in masks], 1)
        return [
            reference_grid(VIDEO, ratios),
            reference_grid(VIDEO, device=masks[0].device, dtype=torch.float16),
        ]

    with device:
        got = grids([mask.to(device.device) for mask in masks])
    _assert_same(got, grids(masks))


# -- what PyTorch has for them -----------------------------------------------------------------


@pytest.mark.skipif(native_functions.table() is None, reason="this PyTorch is without its table")
def test_mps_has_a_kernel_for_every_operator() -> None:
    """So nothing of it needs PYTORCH_ENABLE_MPS_FALLBACK, which computes on the CPU instead."""
    assert native_functions.lacks_kernel("linalg_eig", "MPS")
    with OtherDevice("mps") as device:
        _layer_results("video", _pair("video", [2, 3])[0].to(device.device), device.device)
        for form in FORMS:
            results(_moved(draw(form, SEQUENCE), device), form, "auto")
    assert {"gather", "scatter_add", "addmm", "masked_fill.Scalar"} <= device.operators
    lacking = {name for name in device.operators if native_functions.lacks_kernel(name, "MPS")}
    assert not lacking


def test_the_stand_in_refuses_what_a_device_would(device: OtherDevice) -> None:
    array = torch.ones(2)
    with device:
        there = array.to(device.device)
        refused: list[tuple[type[Exception], Callable[[], Any]]] = [
            (TypeError, lambda: there.double()),
            (TypeError, lambda: there.new_zeros(2, dtype=torch.float64)),
            (RuntimeError, lambda: there + array),
            (RuntimeError, lambda: there.cpu()),
            (RuntimeError, lambda: there.tolist()),
            (RuntimeError, lambda: array.copy_(there)),
            (RuntimeError, lambda: bool(there.sum() > 1)),
            (NotImplementedError, lambda: _ops.st_deform_attn(there, [], None, there, there, [])),
        ]
        for error, call in refused:
            with pytest.raises(error):
                call()
        _assert_same([there + torch.tensor(1.0, dtype=torch.float64)], [array + 1])


# -- what is said ------------------------------------------------------------------------------


def test_each_device_type_is_warned_of_once(device: OtherDevice, warned: set[str]) -> None:
    warned.discard(name := device.device.type)
    problem = draw("points")
    message = (
        f"^stdeform: {name} tensors take the slow reference: stdeform has kernels for cpu and "
        f"cuda tensors, none for {name}. The results are the same: plain PyTorch computes them on "
        f'{name}, in more time and memory. Shown once; not at all with backend="reference".$'
    )
    with device:
        args = _moved(problem, device).from_offsets
        operator("points", "reference")(*args)  # a warning would be an error
        with pytest.warns(RuntimeWarning, match=message) as caught:
            stdeform.st_deform_attn_from_offsets(*args)
        assert [warning.filename for warning in caught] == [__file__]
        results(_moved(problem, device), "locations", "auto")
        _layer_results("image", _pair("image", 3)[0].to(device.device), device.device)


def test_native_is_an_error(device: OtherDevice) -> None:
    name = device.device.type
    with device, pytest.raises(RuntimeError, match=f"no native kernel for {name} tensors: .* none"):
        operator("points", "native")(*_moved(draw("points"), device).from_offsets)


def test_rocm(monkeypatch: pytest.MonkeyPatch, warned: set[str]) -> None:
    """Its tensors say that they are CUDA's."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    warned.clear()
    problem = draw("points")
    with OtherDevice("cuda") as device:
        moved = _moved(problem, device)
        with pytest.warns(RuntimeWarning, match=r"cuda .*: this PyTorch is built for ROCm"):
            got = results(moved, "points", "auto")
        with pytest.raises(RuntimeError, match=r"for cuda tensors: .* ROCm"):
            operator("points", "native")(*moved.from_offsets)
    _assert_same(got, results(problem, "points", "reference"))


def test_the_warning_does_not_break_a_graph(
    monkeypatch: pytest.MonkeyPatch, warned: set[str]
) -> None:
    """Where there is no kernel for the CPU, for a compiler cannot follow a stand-in."""
    torch._dynamo.reset()
    monkeypatch.setattr(_native, "_C", None)
    args = draw("points").from_offsets
    compiled = torch.compile(operator("points"), fullgraph=True, backend="eager")
    with pytest.warns(RuntimeWarning, match="cpu tensors take the slow reference"):
        out = compiled(*args)
    assert torch.equal(out, operator("points", "reference")(*args))
    compiled(*args)  # a warning would be an error
