"""Adapters on and off, in any order, and over what was there before."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from stdeform import _native
from stdeform.integrations.msda import extension
from tests.integrations.adapters import fake_projects
from tests.integrations.adapters.calls import (
    ADAPTERS,
    CLASS,
    LAYERS,
    PLAIN,
    adapter,
    assert_same,
    layers,
    libreyolo,
    on_cpu,
    on_cuda,
    plain,
    run,
)
from tests.integrations.adapters.fake_projects import BEVFORMER, FakeProjects, is_fake

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


def loaded() -> dict[tuple[str, str], object]:
    """Every attribute of every loaded module of the projects, and what a class or list holds."""
    found: dict[tuple[str, str], object] = {}
    for name in filter(is_fake, tuple(sys.modules)):
        for attribute, value in vars(sys.modules[name]).items():
            found[name, attribute] = list(value) if isinstance(value, list) else value
            if isinstance(value, type):
                found[name, f"{attribute}.apply"] = vars(value).get("apply")
    return found


@pytest.mark.parametrize("order", ["ed", "eed", "edd", "eded", "d"])
@pytest.mark.parametrize("project", ADAPTERS)
@pytest.mark.usefixtures("fakes")
def test_in_any_order(project: str, order: str) -> None:
    layers(project)
    importlib.import_module(BEVFORMER)
    before = now = loaded()
    for step in order:
        if step == "e":
            was_enabled, previous = now != before, now
            assert adapter(project).enable() == NAMES[project]
            now = loaded()
            assert now == previous if was_enabled else now != before
        else:
            adapter(project).disable()
            now = loaded()
            assert now == before


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
def test_before_the_kernels_of_the_registry() -> None:
    adapter("libreyolo").enable()
    layers("libreyolo")
    registry: Any = importlib.import_module("libreyolo.kernels")
    assert [name for name, *_ in registry.registered] == ["stdeform", "hub"]


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


@pytest.mark.usefixtures("fakes")
def test_a_blocked_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """None among the loaded modules, by which an import is blocked, has no function."""
    monkeypatch.setitem(sys.modules, "blocked", None)
    assert adapter("mmcv").enable()
