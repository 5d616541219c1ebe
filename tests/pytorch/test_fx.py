"""The operator and the layers under `torch.fx.symbolic_trace`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import stdeform
from tests.support.cases import FORMS, arguments, draw, names, operator, tensors


class _Encoder(nn.Module):
    """A model whose level table is that of its features, which are proxies in a trace."""

    def __init__(self, num_axes: int, **settings: Any) -> None:
        super().__init__()
        kind = stdeform.MSDeformAttn if num_axes == 2 else stdeform.STDeformAttn
        self.layer = kind(8, 2, 2, 2, backend="reference", **settings)
        self.num_axes = num_axes

    def forward(self, features: Tensor, smaller: Tensor, mask: Tensor) -> Tensor:
        both = (features, smaller)
        shapes = [[level.shape[2 + axis] for axis in range(self.num_axes)] for level in both]
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in both], 1)
        points = stdeform.reference_grid(shapes)
        padding = {"padding_mask": mask} if self.num_axes == 3 else {"input_padding_mask": mask}
        return self.layer(cells, points, cells, shapes, **padding)


def _features(num_axes: int, batch: int, size: int) -> tuple[Tensor, ...]:
    sizes = (size, size + 1, size - 1)[:num_axes]
    small = (size - 1,) * num_axes
    cells = stdeform.num_cells(sizes) + stdeform.num_cells(small)
    return (
        torch.randn(batch, 8, *sizes),
        torch.randn(batch, 8, *small),
        torch.rand(batch, cells) < 0.3,
    )


def _targets(graph: fx.Graph) -> list[Any]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("form", FORMS)
def test_the_operator_is_one_node(form: str) -> None:
    attend, shapes = operator(form, "reference"), draw(form).spatial_shapes
    model = {
        2: lambda value, a, b: attend(value, shapes, a, b),
        3: lambda value, a, b, c: attend(value, shapes, a, b, c),
    }[len(names(form)) - 1]
    traced = fx.symbolic_trace(model)
    kind = stdeform.st_deform_attn if form == "locations" else stdeform.st_deform_attn_from_offsets
    assert _targets(traced.graph) == [kind]
    for again in (traced, fx.symbolic_trace(traced)):
        for batch in (2, 3):
            args = tensors(arguments(draw(form, batch=batch), form))
            assert torch.equal(again(*args), model(*args))


@pytest.mark.parametrize("num_axes", [2, 3])
def test_a_model_with_a_layer(num_axes: int) -> None:
    model = _Encoder(num_axes)
    traced = fx.symbolic_trace(model)
    targets = _targets(traced.graph)
    assert targets.count(stdeform.st_deform_attn_from_offsets) == 1
    assert targets.count(stdeform.reference_grid) == 1
    assert len([node for node in traced.graph.nodes if node.op == "call_module"]) == 4
    for again in (traced, fx.symbolic_trace(traced)):
        for batch, size in ((2, 3), (1, 4)):
            features = _features(num_axes, batch, size)
            assert torch.equal(again(*features), model(*features))


class _TakesTensors(nn.Module):
    """The layer as code of Deformable DETR calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = stdeform.MSDeformAttn(8, 2, 2, 2, backend="reference")

    def forward(self, cells: Tensor, points: Tensor, shapes: Tensor, starts: Tensor) -> Tensor:
        out: Tensor = self.layer(cells, points, cells, shapes, starts)
        return out


def test_a_level_table_in_a_tensor() -> None:
    model = _TakesTensors()
    traced = fx.symbolic_trace(model)
    for again in (traced, fx.symbolic_trace(traced)):
        for size in (2, 3):
            cells = torch.randn(2, size * 5 + 6, 8)
            shapes = torch.tensor([(size, 5), (2, 3)])
            starts = torch.tensor([0, 5 * size])
            args = (cells, torch.rand(2, cells.shape[1], 2), shapes, starts)
            assert torch.equal(again(*args), model(*args))


def test_the_checks_are_made_where_the_node_runs() -> None:
    traced = fx.symbolic_trace(lambda value, a, b: stdeform.st_deform_attn(value, [(4, 5)], a, b))
    with pytest.raises(TypeError, match="value must be a Tensor, got int"):
        traced(1, 2, 3)
    value, _, *others = draw("locations", [(2, 2)]).attention
    with pytest.raises(ValueError, match="as many rows as spatial_shapes has cells, 20, got 4"):
        traced(value, *others)


def test_only_some_arguments_are_proxies() -> None:
    problem = draw("points")
    value, shapes, points, offsets, logits = problem.from_offsets
    attend = operator("points", "reference")
    rows = [list(row) for row in shapes]
    for traced in (
        fx.symbolic_trace(lambda rows: attend(value, rows, points, offsets, logits)),
        fx.symbolic_trace(lambda rows: attend(value, [rows[0], rows[1]], points, offsets, logits)),
        fx.symbolic_trace(
            lambda rows: attend(value, [rows[0], (rows[1][0], 3, 3)], points, offsets, logits)
        ),
    ):
        assert torch.equal(traced(rows), attend(value, rows, points, offsets, logits))


def _of_one_argument(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda argument: function(argument)


def test_level_tables() -> None:
    mask = torch.rand(2, 4, 5) < 0.3
    shapes = [(4, 5), (2, 3)]
    for function, argument in (
        (stdeform.num_cells, (4, 5)),
        (stdeform.level_starts, shapes),
        (stdeform.reference_grid, shapes),
        (stdeform.valid_ratios, mask),
        (lambda ratios: stdeform.reference_grid(shapes, ratios), torch.rand(2, 2)),
        (lambda size: stdeform.reference_grid([(size, 5), (2, 3)]), 4),
        (lambda size: stdeform.num_cells((size, 5)), 4),
        (lambda size: stdeform.level_starts([(size, 5), (2, 3)]), 4),
    ):
        traced = fx.symbolic_trace(_of_one_argument(function))
        assert len(_targets(traced.graph)) == 1
        got, want = traced(argument), function(argument)
        assert torch.equal(got, want) if isinstance(want, Tensor) else got == want


def test_an_error_of_a_plain_call_is_its_own() -> None:
    with pytest.raises(TypeError, match="value must be a Tensor, got int"):
        stdeform.st_deform_attn(1, [(4, 5)], 2, 3)
    with pytest.raises(TypeError, match="query must be a Tensor, got int"):
        stdeform.MSDeformAttn(8, 1, 2, 2)(1, 2, 3, [(4, 5)])
