"""The extension's name in `sys.modules`: who has it, in which order, in which process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import stdeform
from stdeform.integrations import msda
from stdeform.integrations.msda import extension

NAME = "MultiScaleDeformableAttention"


@pytest.fixture(params=[None, ModuleType(NAME)], ids=["nothing before", "another before"])
def before(request: pytest.FixtureRequest) -> Iterator[ModuleType | None]:
    """What has the name at the start; afterwards it means what it meant before the test."""
    real = sys.modules.pop(NAME, None)
    if request.param:
        sys.modules[NAME] = request.param
    yield request.param
    sys.modules.pop(NAME, None)
    if real is not None:
        sys.modules[NAME] = real


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    msda.enable()
    yield
    msda.disable()


@pytest.mark.parametrize("order", ["ed", "eed", "edd", "eedd", "ded", "eded", "d", "dd"])
def test_in_any_order(before: ModuleType | None, order: str) -> None:
    for step in order:
        (msda.enable if step == "e" else msda.disable)()
        found = sys.modules.get(NAME)
        assert found is (extension if step == "e" else before)


def test_what_another_puts_there_meanwhile_stays(before: ModuleType | None) -> None:
    msda.enable()
    other = sys.modules[NAME] = ModuleType("other")
    msda.disable()
    assert sys.modules[NAME] is other
    msda.enable()
    msda.disable()
    assert sys.modules[NAME] is other


@pytest.mark.usefixtures("enabled")
def test_imports_find_it() -> None:
    import MultiScaleDeformableAttention as MSDA  # type: ignore[import-not-found]
    from MultiScaleDeformableAttention import ms_deform_attn_backward, ms_deform_attn_forward

    assert MSDA.ms_deform_attn_forward is ms_deform_attn_forward
    assert MSDA.ms_deform_attn_backward is ms_deform_attn_backward
    # Programs that look before they import want a specification with a file.
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.loader is not None
    assert Path(str(spec.origin)).is_file()
    assert importlib.reload(MSDA) is MSDA


def test_in_a_new_process() -> None:
    code = """
import sys, stdeform
assert not [name for name in sys.modules if name.startswith("stdeform.integrations")]
import stdeform.integrations.msda as msda
assert "MultiScaleDeformableAttention" not in sys.modules  # the import alone changes nothing
msda.enable()
import MultiScaleDeformableAttention as MSDA
import torch
shapes = torch.tensor([(4, 5)])
out = MSDA.ms_deform_attn_forward(
    torch.ones(3, 20, 2, 4), shapes, shapes.new_zeros(1), torch.full((3, 7, 2, 1, 4, 2), 0.5),
    torch.full((3, 7, 2, 1, 4), 0.25), 64,
)
assert out.shape == (3, 7, 8) and (out == 1).all()
msda.disable()
try:
    import MultiScaleDeformableAttention
except ModuleNotFoundError:
    sys.exit(0)
sys.exit("still there")
"""
    root = Path(stdeform.__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True)
