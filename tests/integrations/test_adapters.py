"""The adapters of other projects, over modules with their names and signatures, and over their own.

A project that is installed is tested too, where its call does not need its compiled extension.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stdeform import _native
from stdeform.integrations import UnsupportedVersionError
from stdeform.integrations.msda import extension
from stdeform.testing import make_problem
from tests.integrations import fake_projects
from tests.integrations.fake_projects import BEVFORMER, FakeProjects, is_fake, starts

ADAPTERS = ("ultralytics", "rfdetr", "groundingdino", "detrex", "mmcv", "libreyolo")
LAYERS = {
    "ultralytics": "ultralytics.nn.modules.transformer",
    "rfdetr": "rfdetr.models.ops.modules.ms_deform_attn",
    "groundingdino": "groundingdino.models.GroundingDINO.ms_deform_attn",
    "detrex": "detrex.layers.multi_scale_deform_attn",
    "mmcv": "mmcv.ops.multi_scale_deform_attn",
    "libreyolo": "libreyolo.kernels.attention.ms_deform_attn",
    "bevformer": BEVFORMER,
}
SHAPES = [[5, 7], [3, 4], [2, 2]]
PLAIN = "multi_scale_deformable_attn_pytorch"
CLASS = "MultiScaleDeformableAttnFunction"


def layers(project: str) -> Any:
    """The module whose function the project's layers call."""
    return importlib.import_module(LAYERS[project])


def adapter(project: str) -> Any:
    return importlib.import_module(f"stdeform.integrations.{project}")


# -- what the projects' layers call, from the arguments of the operator ------------------------


def ultralytics(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return layers("ultralytics").multi_scale_deformable_attn_pytorch(
        value, SHAPES, locations.flatten(3, 4), weights.flatten(3)
    )


def rfdetr(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return layers("rfdetr").ms_deform_attn_core_pytorch(
        value.permute(0, 2, 3, 1).contiguous(), torch.tensor(SHAPES), locations, weights.flatten(3)
    )


def rfdetr_in_export_mode(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return layers("rfdetr").ms_deform_attn_core_pytorch(
        value.permute(0, 2, 3, 1).contiguous(),
        torch.tensor(SHAPES),
        locations.flatten(3, 4),
        weights.flatten(3),
        value_spatial_shapes_hw=[tuple(row) for row in SHAPES],
    )


def on_cpu(project: str, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return getattr(layers(project), PLAIN)(value, torch.tensor(SHAPES), locations, weights)


def on_cuda(project: str, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    """Here on the CPU, too."""
    shapes = torch.tensor(SHAPES)
    function = getattr(layers(project), CLASS)
    return function.apply(value, shapes, starts(shapes), locations, weights, 64)


def plain(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return fake_projects.plain(value, torch.tensor(SHAPES), locations, weights)


def libreyolo(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    out = layers("libreyolo").maybe_ms_deform_attn(value, torch.tensor(SHAPES), locations, weights)
    return plain(value, locations, weights) if out is None else out


Call = Callable[[Tensor, Tensor, Tensor], Any]
CALLS: dict[str, tuple[str, Call]] = {
    "ultralytics": ("ultralytics", ultralytics),
    "rfdetr": ("rfdetr", rfdetr),
    "rfdetr in export mode": ("rfdetr", rfdetr_in_export_mode),
    "groundingdino": ("groundingdino", partial(on_cpu, "groundingdino")),
    "detrex": ("detrex", partial(on_cpu, "detrex")),
    "detrex on CUDA": ("detrex", partial(on_cuda, "detrex")),
    "mmcv": ("mmcv", partial(on_cpu, "mmcv")),
    "mmcv on CUDA": ("mmcv", partial(on_cuda, "mmcv")),
    "bevformer": ("mmcv", partial(on_cpu, "bevformer")),
    "bevformer on CUDA": ("mmcv", partial(on_cuda, "bevformer")),
    "libreyolo": ("libreyolo", libreyolo),
}
OF_CALLS = pytest.mark.parametrize(("project", "call"), CALLS.values(), ids=CALLS)


# -- fixtures and helpers ----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _disabled() -> Iterator[None]:
    yield
    for project in ADAPTERS:
        adapter(project).disable()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, _disabled: None) -> Iterator[FakeProjects]:
    """The projects by our modules, imported anew."""
    for name in filter(is_fake, tuple(sys.modules)):
        monkeypatch.delitem(sys.modules, name)
    found = FakeProjects()
    monkeypatch.setattr(sys, "meta_path", [found, *sys.meta_path])
    yield found
    for name in filter(is_fake, tuple(sys.modules)):
        del sys.modules[name]


class _Count(TorchDispatchMode):
    """Counts the calls of the operator and of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0, 0]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls[0] += function is torch.ops.stdeform.st_deform_attn.default
        self.calls[1] += function is torch.ops.stdeform.st_deform_attn_backward.default
        return function(*args, **kwargs or {})


def inputs() -> list[Tensor]:
    problem = make_problem(SHAPES, kink_margin=0.1).requires_grad_()
    return [problem.value, problem.sampling_locations, problem.attention_weights]


def run(call: Call) -> tuple[list[Tensor], list[int]]:
    """The result of a call and its gradients, and how often the operator was called for each."""
    tensors = inputs()
    with _Count() as count:
        out = call(*tensors)
        weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
        grads = torch.autograd.grad(out, tensors, weights)
    return [out, *grads], count.calls


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-5)


def loaded() -> dict[tuple[str, str], object]:
    """Every attribute of every loaded module of the projects, and what a class or list holds."""
    found: dict[tuple[str, str], object] = {}
    for name in filter(is_fake, tuple(sys.modules)):
        for attribute, value in vars(sys.modules[name]).items():
            found[name, attribute] = list(value) if isinstance(value, list) else value
            if isinstance(value, type):
                found[name, f"{attribute}.apply"] = vars(value).get("apply")
    return found


# -- results -----------------------------------------------------------------------------------


@OF_CALLS
@pytest.mark.usefixtures("needs_native")
def test_the_operator_computes_the_same(project: str, call: Call, fakes: FakeProjects) -> None:
    check(project, call)


def check(project: str, call: Call) -> None:
    expected, calls = run(call)
    assert calls == [0, 0]
    adapter(project).enable()
    found, calls = run(call)
    assert calls == [1, 1]
    assert_same(found, expected)
    adapter(project).disable()
    again, calls = run(call)
    assert calls == [0, 0]
    assert all(map(torch.equal, again, expected))


@OF_CALLS
@pytest.mark.usefixtures("needs_native", "fakes")
def test_what_is_imported_afterwards_has_it_too(project: str, call: Call) -> None:
    adapter(project).enable()
    assert run(call)[1] == [1, 1]


@pytest.mark.parametrize("project", ADAPTERS)
@pytest.mark.usefixtures("needs_native")
def test_an_installed_project(project: str) -> None:
    pytest.importorskip(LAYERS[project], exc_type=ImportError)
    check(*CALLS[project])


@pytest.mark.parametrize(
    ("project", "call", "dtype"),
    [
        ("ultralytics", ultralytics, torch.float32),
        ("rfdetr", rfdetr, torch.float32),
        ("mmcv", partial(on_cuda, "mmcv"), torch.bfloat16),
        ("libreyolo", libreyolo, torch.bfloat16),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_the_dtype_of_the_result(project: str, call: Call, dtype: torch.dtype) -> None:
    """Where autocast makes the value smaller: as PyTorch promotes, or as their kernels return."""
    adapter(project).enable()
    value, locations, weights = inputs()
    out = call(value.bfloat16(), locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), plain(value, locations, weights), rtol=0.02, atol=0.02)


# -- on and off --------------------------------------------------------------------------------

NAMES = {
    "ultralytics": [f"{LAYERS['ultralytics']}.{PLAIN}"],
    "rfdetr": [f"{LAYERS['rfdetr']}.ms_deform_attn_core_pytorch"],
    "groundingdino": [f"{LAYERS['groundingdino']}.{PLAIN}"],
    "detrex": [f"{LAYERS['detrex']}.{PLAIN}", f"{LAYERS['detrex']}._C"],
    "mmcv": [
        f"{LAYERS['mmcv']}.{PLAIN}",
        f"{BEVFORMER}.{PLAIN}",
        f"{LAYERS['mmcv']}.{CLASS}.apply",
        "mmcv._ext.ms_deform_attn_forward",
        "mmcv._ext.ms_deform_attn_backward",
    ],
    "libreyolo": ["libreyolo.kernels.ms_deform_attn"],
}


@pytest.mark.parametrize("order", ["ed", "eed", "edd", "eded", "d"])
@pytest.mark.parametrize("project", ADAPTERS)
@pytest.mark.usefixtures("fakes")
def test_in_any_order(project: str, order: str) -> None:
    layers(project)
    importlib.import_module(BEVFORMER)
    before = loaded()
    for step in order:
        if step == "e":
            assert adapter(project).enable() == NAMES[project]
            assert loaded() != before
        else:
            adapter(project).disable()
            assert loaded() == before


@pytest.mark.parametrize("project", ["groundingdino", "detrex"])
@pytest.mark.parametrize("loaded_before", [False, True])
@pytest.mark.usefixtures("needs_native")
def test_an_extension_that_is_not_compiled(
    project: str, loaded_before: bool, fakes: FakeProjects
) -> None:
    fakes.modules[LAYERS["groundingdino"]] = fake_projects.groundingdino_repository
    del fakes.modules["detrex._C"]
    name = f"{project}._C"
    if loaded_before:
        layers(project)
        if project == "detrex":
            with pytest.raises(RuntimeError, match=r"call enable before detrex is imported$"):
                adapter(project).enable()
            assert name not in sys.modules
            return
    assert (
        adapter(project).enable()
        == adapter(project).enable()
        == [
            f"{LAYERS[project]}.{PLAIN}",
            f"{LAYERS[project]}._C",
        ]
    )
    assert importlib.import_module(name) is extension
    for call in (on_cpu, on_cuda):
        out, calls = run(partial(call, project))
        assert calls == [1, 1]
        assert_same(out, run(plain)[0])
    adapter(project).disable()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_an_extension_that_another_put_there(fakes: FakeProjects) -> None:
    del fakes.modules["detrex._C"]
    other = sys.modules["detrex._C"] = ModuleType("detrex._C")
    adapter("detrex").enable()
    assert layers("detrex")._C is extension
    adapter("detrex").disable()
    assert layers("detrex")._C is sys.modules["detrex._C"] is other


@pytest.mark.usefixtures("fakes")
def test_a_registry_that_selects_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBREYOLO_KERNELS", "off")
    assert adapter("libreyolo").enable() == []


@pytest.mark.usefixtures("fakes")
def test_no_kernel_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry then tries the next."""
    adapter("libreyolo").enable()
    monkeypatch.setattr(_native, "missing", lambda device_type: "none")
    assert run(libreyolo)[1] == [0, 0]


# -- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("project", ADAPTERS)
def test_not_installed(project: str, fakes: FakeProjects) -> None:
    fakes.modules = {}
    with pytest.raises(ModuleNotFoundError, match=f"^No module named '{project}'$"):
        adapter(project).enable()


@pytest.fixture
def _distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names than those that are imported."""
    found = {project: [f"{project}-py", f"{project}-fork"] for project in ADAPTERS}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: found)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"0.{len(name)}")


@pytest.mark.parametrize("project", ADAPTERS)
def test_without_the_module(
    project: str, fakes: FakeProjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    fakes.modules.pop(project, None)
    del fakes.modules[LAYERS[project]]
    fakes.modules[f"{project}.other"] = lambda module: None
    with pytest.raises(
        UnsupportedVersionError,
        match=f"^{project} of unknown version is not supported: {project} has no module "
        f"{LAYERS[project]}$",
    ):
        adapter(project).enable()
    assert f"{project}._C" not in sys.modules or project == "detrex"


REGISTRY = ("register", "unregister", "resolve", "clear_cache")
FUNCTIONS = (
    *((project, LAYERS[project], PLAIN) for project in ("ultralytics", *ADAPTERS[2:5])),
    ("rfdetr", LAYERS["rfdetr"], "ms_deform_attn_core_pytorch"),
    ("mmcv", LAYERS["mmcv"], CLASS),
    *(("libreyolo", "libreyolo.kernels", name) for name in REGISTRY),
)


@pytest.mark.parametrize(("project", "owner", "name"), FUNCTIONS)
@pytest.mark.parametrize("change", ["missing", "changed"])
@pytest.mark.usefixtures("_distributions")
def test_another_version(
    project: str, owner: str, name: str, change: str, fakes: FakeProjects
) -> None:
    class Changed:
        def __new__(cls, other: int) -> Any: ...

        def forward(ctx, other: int) -> Any: ...

    Changed.__module__ = owner
    make = fakes.modules[owner]

    def make_changed(module: Any) -> None:
        make(module)
        delattr(module, name) if change == "missing" else setattr(module, name, Changed)

    fakes.modules[owner] = make_changed
    what = {
        "missing": f"{owner} has no (function|class) {name}$",
        "changed": r".* takes \((ctx, )?other\), expected \(",
    }[change]
    who = f"{project}-py 0.{len(project) + 3} and {project}-fork 0.{len(project) + 5}"
    with pytest.raises(UnsupportedVersionError, match=f"^{who} is not supported: {what}"):
        adapter(project).enable()
