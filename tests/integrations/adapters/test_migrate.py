"""The page about moving to stdeform: the code of each section runs, before and after."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from stdeform.integrations import msda
from tests.integrations.adapters import calls, fake_projects
from tests.integrations.migrate_page import SECTIONS, blocks, execute

# What stands for a project's model, and the name in the page of what makes one.
MODELS = {
    "Ultralytics": (calls.ultralytics, "ultralytics.RTDETR"),
    "RF-DETR": (calls.rfdetr, "rfdetr.RFDETRMedium"),
    "Grounding DINO": (
        functools.partial(calls.on_cpu, "groundingdino"),
        "groundingdino.util.inference.load_model",
    ),
    "mmcv": (functools.partial(calls.on_cpu, "mmcv"), "mmdet.apis.init_detector"),
    "detrex": (
        functools.partial(calls.on_cpu, "detrex"),
        "detrex.layers.MultiScaleDeformableAttention",
    ),
    "LibreYOLO": (calls.libreyolo, "libreyolo.LibreYOLO"),
}
EXTENSION = "MultiScaleDeformableAttention"
pytestmark = pytest.mark.usefixtures("needs_native")


class _Model:
    """A project's model, any method of which calls the project's function."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return self.__call__

    def __call__(self, *args: Any, **kwargs: Any) -> list[int]:
        """How often the operator is called, forward and backward."""
        return calls.run(self._call)[1]


def test_every_section_is_run() -> None:
    run_here = {*MODELS, "grid_sample", "A compiled MultiScaleDeformableAttention"}
    with_code = {section for section in SECTIONS if blocks(section)}
    assert with_code == {*run_here, "Hugging Face transformers"}


def test_code_is_short() -> None:
    lengths = [len(re.findall(r"^.", block, re.M)) for name in SECTIONS for block in blocks(name)]
    assert max(lengths) <= 10


@pytest.mark.parametrize("section", MODELS)
@pytest.mark.usefixtures("fakes")
def test_project(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, made_by = MODELS[section]
    module, _, name = made_by.rpartition(".")
    for package in (module.partition(".")[0], module):
        if package not in sys.modules and not fake_projects.is_fake(package):
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        owner = ModuleType(module)
        monkeypatch.setitem(sys.modules, module, owner)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: _Model(call), raising=False)
    before, after = blocks(section)
    made = execute(before)
    assert made.get("model", made.get("attention"))() == [0, 0]
    made = execute(after)
    assert made.get("model", made.get("attention"))() == [1, 1]


def test_grid_sample() -> None:
    before, after = (execute(block)["out"] for block in blocks("grid_sample"))
    torch.testing.assert_close(after, before)


def test_compiled_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, layer = blocks("A compiled MultiScaleDeformableAttention")
    compiled = ModuleType(EXTENSION)
    fake_projects.compiled(compiled)
    with monkeypatch.context() as context:
        context.setitem(sys.modules, EXTENSION, compiled)
        expected = execute(before)["out"]
    found = execute(after)
    msda.disable()
    torch.testing.assert_close(found["out"], expected)
    assert found["MSDA"] is not compiled
    assert execute(layer)["out"].shape == (3, 100, 256)
