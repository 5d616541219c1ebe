"""Every model family computes with the operator what it computes without, and does so in all."""

from __future__ import annotations

import functools
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import stdeform.integrations.transformers as st
from tests.integrations.transformers import models
from tests.integrations.transformers.models import Calls, Family, transformers

How = Literal["enable", "patch"]

# OneFormer of transformers 4.50 does not name its order.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")


def use(how: How, model: nn.Module) -> None:
    assert st.enable() if how == "enable" else st.patch(model)


@functools.cache
def plain(family: Family) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    model = models.make(family).double()
    found = models.outputs(model, family)
    return found, models.gradients(model, found)


# In float64, since a sample next to the centre of a cell has two gradients, and float32 takes
# either of them.
@pytest.mark.parametrize("how", ["enable", "patch"])
@models.each_case
def test_outputs_and_gradients(family: Family, how: How) -> None:
    if family.name == "omdet_turbo" and transformers.__version__ < "5":
        pytest.skip("its text model does not run in float64")
    expected, expected_gradients = plain(family)
    model = models.make(family).double()
    use(how, model)
    with Calls() as calls:
        found = models.outputs(model, family)
        gradients = models.gradients(model, found)
    assert calls.number == models.num_layers(model, family)
    models.assert_equal_outputs(found, expected, rtol=1e-9)
    models.assert_equal_gradients(gradients, expected_gradients, rtol=1e-9)


@pytest.mark.parametrize("how", ["enable", "patch"])
@models.each_case
@torch.no_grad()
def test_on_and_off(family: Family, how: How) -> None:
    model = models.make(family)
    other = models.make(family)
    expected = models.outputs(models.make(family), family)
    use(how, model)
    with Calls() as calls:
        found = models.outputs(model, family)
    assert calls.number == models.num_layers(model, family) > 1
    models.assert_equal_outputs(found, expected, rtol=1e-4)
    if how == "patch":
        with Calls() as calls:
            found = models.outputs(other, family)
        assert calls.number == 0
        models.assert_equal_outputs(found, expected, rtol=0.0)
    st.disable()
    with Calls() as calls:
        found = models.outputs(models.make(family) if how == "enable" else model, family)
    assert calls.number == 0
    models.assert_equal_outputs(found, expected, rtol=0.0)
