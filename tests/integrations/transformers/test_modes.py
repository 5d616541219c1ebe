"""The operator in models that are compiled, checkpointed or in low precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stdeform.integrations.transformers as st
from tests.integrations.transformers import models
from tests.integrations.transformers.models import Calls, Family


# Plain models compile without a break, and so must these.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"), [("rt_detr", "patch"), ("rt_detr_v2", "enable"), ("d_fine", "enable")]
)
def test_compile(name: str, how: str) -> None:
    family = models.find(name)
    model = models.make(family)
    with torch.no_grad():
        expected = models.outputs(model, family)
    assert st.enable() if how == "enable" else st.patch(model)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=keep, fullgraph=True)
    with torch.no_grad():
        found = models.outputs(compiled, family)
    models.assert_equal_outputs(found, expected, rtol=1e-4)
    (graph,) = graphs
    called = [node.target for node in graph.graph.nodes]
    assert called.count(torch.ops.stdeform.st_deform_attn.default) == 3
    assert nn.functional.grid_sample not in called


@pytest.mark.parametrize("autocast", [True, False])
@models.each_kind
@torch.no_grad()
def test_bfloat16(family: Family, autocast: bool) -> None:
    model = models.make(family)
    if not autocast:
        model = model.bfloat16()

    def run() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return models.outputs(model, family)

    expected = run()
    st.patch(model)
    with Calls() as calls:
        found = run()
    assert calls.number == models.num_layers(model, family)
    for tensor, plain in zip(found, expected, strict=True):
        assert tensor.dtype == plain.dtype
        # Some steps of 2 ** -8 in each layer.
        assert torch.dist(tensor.float(), plain.float()) <= 0.05 * plain.float().norm()


@pytest.mark.parametrize("how", ["enable", "patch"])
def test_gradient_checkpointing(how: str) -> None:
    family = models.find("deformable_detr")
    model = models.make(family).double()
    expected = models.gradients(model, models.outputs(model, family))
    assert st.enable() if how == "enable" else st.patch(model)
    name = "activation_checkpointing_enable"  # from 5.23 on
    getattr(model, name, model.gradient_checkpointing_enable)()
    model.train()  # or nothing is checkpointed; there is no dropout
    with Calls() as calls:
        found = models.gradients(model, models.outputs(model, family))
    assert calls.number == 2 * models.num_layers(model, family)  # each forward again
    models.assert_equal_gradients(found, expected, rtol=1e-9)
