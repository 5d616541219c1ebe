"""A project that is not installed, or in another version."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest

from stdeform.integrations import UnsupportedVersionError
from tests.integrations.adapters.calls import ADAPTERS, CLASS, LAYERS, PLAIN, adapter
from tests.integrations.adapters.fake_projects import FakeProjects


@pytest.mark.parametrize("project", ADAPTERS)
def test_not_installed(project: str, fakes: FakeProjects) -> None:
    fakes.modules = {}
    with pytest.raises(ModuleNotFoundError, match=f"^No module named '{project}'$"):
        adapter(project).enable()


def test_without_what_a_project_needs(fakes: FakeProjects) -> None:
    """As mmcv-lite, which has the Python files and no extension."""
    del fakes.modules["mmcv._ext"]
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'mmcv\._ext'$"):
        adapter("mmcv").enable()


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
