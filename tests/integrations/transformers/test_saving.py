"""Models are saved as plain ones: they load where this library is not installed."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import stdeform.integrations.transformers as st
from tests.integrations.transformers import models
from tests.integrations.transformers.models import Calls, Family, transformers


def switch(how: str, model: nn.Module) -> None:
    assert st.enable() if how == "enable" else st.patch(model)


@pytest.mark.parametrize("how", ["enable", "patch"])
@models.each_kind
@torch.no_grad()
def test_deep_copies(family: Family, how: str) -> None:
    model = models.make(family)
    expected = models.outputs(model, family)
    switch(how, model)
    copied = copy.deepcopy(copy.deepcopy(model))
    for name, parameter in copied.named_parameters():
        assert parameter is not model.get_parameter(name)
    with Calls() as calls:
        models.assert_equal_outputs(models.outputs(copied, family), expected, rtol=1e-4)
    assert calls.number == models.num_layers(model, family)
    st.disable()
    assert [type(each) for each in copied.modules()] == [type(each) for each in model.modules()]
    models.assert_equal_outputs(models.outputs(copied, family), expected, rtol=0.0)


@models.each_kind
@torch.no_grad()
def test_save_pretrained(family: Family, tmp_path: Path) -> None:
    model = models.make(family)
    expected = models.outputs(model, family)
    model.save_pretrained(tmp_path / "plain")
    st.patch(model)
    model.save_pretrained(tmp_path / "patched")
    files = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "patched").iterdir()}

    st.enable()
    loaded = type(model).from_pretrained(tmp_path / "patched").eval()
    with Calls() as calls:
        models.assert_equal_outputs(models.outputs(loaded, family), expected, rtol=1e-4)
    assert calls.number == models.num_layers(model, family)
    st.disable()
    loaded = type(model).from_pretrained(tmp_path / "patched").eval()
    with Calls() as calls:
        # Weights that are aligned otherwise may add up in another order.
        models.assert_equal_outputs(models.outputs(loaded, family), expected, rtol=1e-6)
    assert calls.number == 0


@models.each_kind
@torch.no_grad()
def test_from_config(family: Family) -> None:
    plain = models.make(family)
    st.enable()
    task = family.model[family.model.rindex("For") :]
    model = getattr(transformers, f"AutoModel{task}").from_config(plain.config).eval()
    with Calls() as calls:
        models.outputs(model, family)
    assert calls.number == models.num_layers(plain, family)


@pytest.mark.slow
@torch.no_grad()
def test_pickles_load_without_the_library(tmp_path: Path) -> None:
    for how in ("enable", "patch"):
        # Mask2Former and OneFormer cannot be pickled: Swin has local functions as hooks.
        for name in ("rt_detr", "rt_detr_v2", "d_fine"):
            family = models.find(name)
            if not hasattr(transformers, family.model):
                continue
            images = torch.randn(1, 3, models.HEIGHT, models.WIDTH)
            expected = tuple(models.make(family)(pixel_values=images).values())[:2]
            model = models.make(family)
            switch(how, model)
            file = tmp_path / f"{name}-{how}"
            torch.save(model, file.with_suffix(".pt"))
            file.with_suffix(".pickle").write_bytes(pickle.dumps(model))
            torch.save((images, expected), file.with_suffix(".results"))
            st.disable()
    code = """
import pathlib, pickle, sys
import torch
torch.set_num_threads(1)
sys.modules["stdeform"] = None
folder, = sys.argv[1:]
files = sorted(pathlib.Path(folder).glob("*.results"))
for file in files:
    images, expected = torch.load(file)
    for model in (
        torch.load(file.with_suffix(".pt"), weights_only=False),
        pickle.loads(file.with_suffix(".pickle").read_bytes()),
    ):
        with torch.no_grad():
            found = tuple(model(pixel_values=images).values())[:2]
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
assert len(files) >= 4
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    for file in (*tmp_path.glob("*.pt"), *tmp_path.glob("*.pickle")):
        assert b"stdeform" not in file.read_bytes()
