"""An exported or traced model has its project's own function; a compiled one has the operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.adapters import calls
from tests.integrations.adapters.calls import CALLS, Call, adapter, inputs

pytestmark = [
    pytest.mark.usefixtures("fakes"),
    pytest.mark.filterwarnings(
        # That modules of the tests read sizes in Python; that tracing is an old way.
        "ignore::torch.jit.TracerWarning",
        "ignore:.*torch.jit:DeprecationWarning",
        "ignore::FutureWarning",
    ),
]
# Those that get their sizes as Python ints.
NAMES = ("ultralytics", "rfdetr in export mode")


class Model(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
        return self.call(value, locations, weights)


@pytest.fixture
def model(name: str, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model that calls a project's function, with the operator."""
    project, call = CALLS[name]
    adapter(project).enable()
    module = calls.layers(project)
    monkeypatch.setattr(calls, "layers", lambda project: module)  # a compiler cannot import
    return Model(call)


@pytest.mark.parametrize("name", [*NAMES, "groundingdino", "mmcv", "mmcv on CUDA"])
def test_traced(model: Model) -> None:
    traced = torch.jit.trace(model, tuple(inputs()))
    assert "stdeform::" not in str(traced.inlined_graph)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strict", [False, True])
def test_exported(model: Model, strict: bool) -> None:
    program = torch.export.export(model, tuple(inputs()), strict=strict)
    assert "stdeform." not in program.graph_module.code
    assert "grid_sample" in program.graph_module.code


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("needs_native")
@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="this PyTorch does not tell it from export"
)
def test_compiled(model: Model) -> None:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    torch.compile(model, backend=backend, fullgraph=True)(*inputs())
    assert ["stdeform.st_deform_attn" in graph for graph in graphs] == [True]
