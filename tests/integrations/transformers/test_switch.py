"""What `enable`, `patch` and `disable` do to classes and models, in which order ever."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import stdeform.integrations.transformers as st
from stdeform.integrations import UnsupportedVersionError
from tests.integrations.transformers import models
from tests.integrations.transformers.models import FAMILIES, Calls, Family, transformers


def classes() -> dict[str, object]:
    """Every attribute of every class and module of the families."""
    found: dict[str, object] = {}
    for family in FAMILIES:
        package = f"transformers.models.{family.name}"
        if importlib.util.find_spec(package) is None:
            continue
        module = importlib.import_module(f"{package}.modeling_{family.name}")
        for name, each in vars(module).items():
            found[f"{module.__name__}.{name}"] = each
            if isinstance(each, type) and each.__module__ == module.__name__:
                attributes = {
                    f"{module.__name__}.{name}.{key}": vars(each)[key] for key in vars(each)
                }
                found.update(attributes)
    # Python makes the annotations of a class when it is asked for them.
    return {name: each for name, each in found.items() if not name.endswith(".__annotations__")}


def changed(before: dict[str, object]) -> set[str]:
    now = classes()
    return {name for name in before.keys() | now.keys() if before.get(name) is not now.get(name)}


def count(model: nn.Module, family: Family) -> int:
    with torch.no_grad(), Calls() as calls:
        models.outputs(model, family)
    return calls.number


def test_enable_changes_what_it_names_and_disable_all_of_it() -> None:
    before = classes()
    names = st.enable()
    assert names == st.enable()
    assert changed(before) == set(names)
    assert len({name.split(".")[2] for name in names}) == sum(
        hasattr(transformers, family.model) for family in FAMILIES
    )
    st.disable()
    assert not changed(before)


@pytest.mark.parametrize("order", ["dd", "eed", "ppd", "pepd", "epded"])
def test_in_any_order(order: str) -> None:
    family = models.find("rt_detr")
    model = models.make(family)
    before = classes()
    plain_classes = [type(module) for module in model.modules()]
    for step in order:
        if step == "p":
            assert st.patch(model) == [
                f"model.decoder.layers.{layer}.encoder_attn.attn" for layer in range(3)
            ]
        else:
            st.enable() if step == "e" else st.disable()
        assert count(model, family) == (0 if step == "d" else 3)
    assert not changed(before)
    assert [type(module) for module in model.modules()] == plain_classes


@models.each_kind
def test_patch_leaves_other_models_alone(family: Family) -> None:
    model, other = models.make(family), models.make(family)
    before = classes()
    assert len(st.patch(model)) == models.num_layers(model, family)
    assert not changed(before)
    assert count(other, family) == 0
    for patched, plain in zip(model.modules(), other.modules(), strict=True):
        assert isinstance(patched, type(plain))
        assert repr(type(patched)) == repr(type(plain))


def test_patch_of_a_part() -> None:
    family = models.find("deformable_detr")
    model = models.make(family)
    assert len(st.patch(model.model.encoder)) == 2
    assert count(model, family) == 2
    assert len(st.patch(nn.ModuleList([model, models.make(family)]))) == 10
    assert count(model, family) == 5


def test_nothing_to_replace() -> None:
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    for model in (transformers.BertModel(config), nn.Linear(2, 2)):
        message = f"^model must have .*, found none in {type(model).__name__}$"
        with pytest.raises(ValueError, match=message):
            st.patch(model)


@pytest.mark.parametrize("model", [None, nn.Linear, "model"])
def test_no_model(model: Any) -> None:
    message = f"^model must be a torch.nn.Module, got {type(model).__name__}$"
    with pytest.raises(TypeError, match=message):
        st.patch(model)


def test_a_forward_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate sets one on a module; then nothing in the model changes."""
    model = models.make(models.find("mask2former"))
    classes = [type(module) for module in model.modules()]
    layers = [module for module in model.modules() if "Deformable" in type(module).__name__]
    monkeypatch.setattr(layers[-1], "forward", functools.partial(layers[-1].forward))
    with pytest.raises(ValueError, match="must not have had the forward of its Mask2Former"):
        st.patch(model)
    assert [type(module) for module in model.modules()] == classes


# Of each kind of class or function that is replaced: what an unknown version may do to it. The
# families are the last of their kinds, so that others would be replaced before.
MODELING = "transformers.models.{0}.modeling_{0}"
CHANGES = {
    "no class": ("rt_detr", "MultiScaleDeformableAttention", None, "has no class Multi"),
    "not a class": ("rt_detr", "MultiScaleDeformableAttention", print, "has no class Multi"),
    "other parameters": (
        "rt_detr",
        "MultiScaleDeformableAttention.forward",
        lambda self, value, sampling_locations, attention_weights: value,
        r"MultiScaleDeformableAttention\.forward takes \(self, value, sampling_locations, ",
    ),
    "no function": ("oneformer", "multi_scale_deformable_attention", None, "has no function multi"),
    "other parameters of the function": (
        "oneformer",
        "multi_scale_deformable_attention",
        lambda value, shapes: value,
        r"\.multi_scale_deformable_attention takes \(value, shapes\), expected \(value, value_sp",
    ),
    "function not called": (
        "oneformer",
        "OneFormerPixelDecoderEncoderMultiscaleDeformableAttention.forward",
        lambda self, hidden_states: hidden_states,
        r"\.forward does not call multi_scale_deformable_attention",
    ),
    "no function of the second version": (
        "rt_detr_v2",
        "multi_scale_deformable_attention_v2",
        None,
        "has no function multi_scale_deformable_attention_v2",
    ),
}


@pytest.mark.parametrize(("name", "attribute", "value", "message"), CHANGES.values(), ids=CHANGES)
def test_another_version(
    monkeypatch: pytest.MonkeyPatch, name: str, attribute: str, value: object, message: str
) -> None:
    family = models.find(name)
    model, other = models.make(family), models.make(models.find("deformable_detr"))
    path = f"{MODELING.format(name)}.{attribute}"
    if value is None:
        monkeypatch.delattr(path)
    else:
        monkeypatch.setattr(path, value)
    before = classes()
    both = nn.ModuleList([other, model])
    plain_classes = [type(module) for module in both.modules()]
    message = rf"^transformers {transformers.__version__} is not supported: .*{message}"
    with pytest.raises(UnsupportedVersionError, match=message):
        st.enable()
    assert not changed(before)
    with pytest.raises(UnsupportedVersionError, match=message):
        st.patch(both)
    assert [type(module) for module in both.modules()] == plain_classes


def test_without_transformers() -> None:
    code = """
import sys
from typing import Any
sys.modules["transformers"] = None
import stdeform.integrations.transformers as st  # the import alone needs nothing
try:
    st.enable()
except ModuleNotFoundError as error:
    assert "transformers" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_that_something_else_changes() -> None:
    """As FSDP2 does to a patched model: that class stays."""
    model = models.make(models.find("d_fine"))
    name, *_ = st.patch(model)
    layer = model.get_submodule(name)
    layer.__class__ = changed = type("Changed", (type(layer),), {})
    st.disable()
    assert type(layer) is changed


def test_threads() -> None:
    """Any number of them may replace and restore."""
    before, model = classes(), models.make(models.find("rt_detr"))
    own = [type(module) for module in model.modules()]

    def run(_: int) -> None:
        for _ in range(20):
            st.enable()
            st.patch(model)
            st.disable()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(4)))
    finally:
        sys.setswitchinterval(interval)
    st.disable()
    assert classes() == before
    assert [type(module) for module in model.modules()] == own
