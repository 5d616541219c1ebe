"""Every model family computes with the operator what it computes without, and does so in all."""

from __future__ import annotations

import pytest
import torch

import stdeform.integrations.transformers as st
from tests.integrations.transformers import models
from tests.integrations.transformers.models import Calls, Family, transformers

# OneFormer of transformers 4.50 does not name its order.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")


# In float64, since a sample next to the centre of a cell has two gradients, and float32 takes
# either of them.
@models.each_case
def test_outputs_and_gradients(family: Family) -> None:
    if family.name == "omdet_turbo" and transformers.__version__ < "5":
        pytest.skip("its text model does not run in float64")
    model = models.make(family).double()
    expected = models.outputs(model, family)
    expected_gradients = models.gradients(model, expected)
    for use in (st.patch, lambda model: st.enable()):
        assert use(model)
        with Calls() as calls:
            outputs = models.outputs(model, family)
            gradients = models.gradients(model, outputs)
        assert calls.number == models.num_layers(model, family)
        models.assert_equal_outputs(outputs, expected, rtol=1e-9)
        models.assert_equal_gradients(gradients, expected_gradients, rtol=1e-9)
        st.disable()


@models.each_case
@torch.no_grad()
def test_on_and_off(family: Family) -> None:
    model = models.make(family)

    def check(number: int, rtol: float) -> None:
        with Calls() as calls:
            found = models.outputs(model, family, output_attentions=True)
        assert calls.number == number
        models.assert_equal_outputs(found, expected, rtol)

    expected = models.outputs(model, family, output_attentions=True)
    for use in (st.patch, lambda model: st.enable()):
        use(model)
        check(models.num_layers(model, family), rtol=1e-4)
        st.disable()
        check(0, rtol=0.0)
