"""`torch.export` with every size dynamic: batch, queries, and the axes of the level table."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import stdeform
from stdeform import _ops
from tests.support.cases import arguments, draw, operator

# Of torch.export itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning", "ignore::FutureWarning"
)


class _Model(nn.Module):
    """A layer over a level of all sizes, which its grid marks, with queries of its own."""

    def __init__(self, num_axes: int, backend: Any) -> None:
        super().__init__()
        kind = stdeform.MSDeformAttn if num_axes == 2 else stdeform.STDeformAttn
        self.layer = kind(8, 1, 2, 2, backend=backend)
        nn.init.normal_(self.layer.sampling_offsets.weight, std=0.3)
        nn.init.normal_(self.layer.attention_weights.weight)

    def forward(self, features: Tensor, queries: Tensor, points: Tensor) -> Tensor:
        shapes = [tuple(features.shape[2:])]
        marks = stdeform.reference_grid(shapes)[:, :, 0].sum(-1, keepdim=True)
        out: Tensor = self.layer(queries, points, features.flatten(2).mT + marks, shapes)
        return out


def _inputs(num_axes: int, batch: int, queries: int, size: int) -> tuple[Tensor, ...]:
    sizes = (size - 1, size, size + 2)[-num_axes:]
    return (
        torch.randn(batch, 8, *sizes),
        torch.randn(batch, queries, 8),
        torch.rand(batch, queries, num_axes),
    )


@pytest.mark.parametrize(
    ("backend", "num_axes", "strict"),
    [("native", 2, True), ("native", 3, False), ("reference", 2, False)],
)
def test_layers(backend: str, num_axes: int, strict: bool, request: pytest.FixtureRequest) -> None:
    if backend == "native":
        request.getfixturevalue("needs_native")
    model = _Model(num_axes, backend).eval()
    batch, queries = Dim("batch"), Dim("queries")
    sizes = {2 + axis: Dim(f"size{axis}", min=2) for axis in range(num_axes)}
    dynamic = ({0: batch, **sizes}, {0: batch, 1: queries}, {0: batch, 1: queries})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own use of its deprecated parts
        program = torch.export.export(
            model, _inputs(num_axes, 2, 5, 4), dynamic_shapes=dynamic, strict=strict
        )
        programs = program, program.run_decompositions()
    found = [node.target for node in program.graph.nodes]
    assert found.count(_ops.st_deform_attn) == (1 if backend == "native" else 0)
    for exported in programs:
        for case in ((2, 5, 4), (3, 7, 6)):
            inputs = _inputs(num_axes, *case)
            torch.testing.assert_close(exported.module()(*inputs), model(*inputs))


class _Operator(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, image: Tensor, others: tuple[Tensor, ...]) -> Tensor:
        table = [tuple(image.shape[1:3])]
        return operator(self.form, "reference")(image.flatten(1, 2), table, *others)


@pytest.mark.parametrize("form", ["locations", "boxes"])
def test_the_reference_of_either_form(form: str) -> None:
    def inputs(shape: tuple[int, int], batch: int, queries: int) -> tuple[Any, ...]:
        problem = draw(form, [shape], batch=batch, num_queries=queries)
        value, _, *others = arguments(problem, form)
        return value.unflatten(1, shape), tuple(others)

    model, example = _Operator(form), inputs((4, 5), 2, 7)
    batch, queries = Dim("batch"), Dim("queries")
    sizes = {1 + axis: Dim(f"size{axis}", min=2) for axis in range(2)}
    others = tuple({0: batch, 1: queries} for _ in example[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, example, dynamic_shapes=({0: batch, **sizes}, others), strict=False
        )
    for case in (((4, 5), 2, 7), ((2, 8), 3, 4)):
        torch.testing.assert_close(program.module()(*inputs(*case)), model(*inputs(*case)))
