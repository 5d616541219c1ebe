"""Level tables in tensors: what is read of them, how often, and under a compiler."""

from __future__ import annotations

import copy
import gc
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stdeform import MSDeformAttn, _shape_tensors
from tests.support.integers_on_gpu import IntegersOnGpu
from tests.support.layers import image_layer, inputs, trained

OTHER = [(5, 6), (3, 3)]  # as many cells as inputs("image") has

# -- on a device -------------------------------------------------------------------------------


def test_a_tensor_on_a_device_is_read_once_for_all_layers(shapes_on_gpu: IntegersOnGpu) -> None:
    query, points, value, shapes = inputs("image")
    table, starts = torch.tensor(shapes), torch.tensor([7, 7])  # starts on a device are trusted
    for _ in range(3):
        layer = trained(image_layer())
        expected = layer(query, points, value, shapes)
        assert torch.equal(layer(query, points, value, table, starts), expected)
    assert len(shapes_on_gpu.reads) == 1


def test_a_changed_tensor_is_read_again(shapes_on_gpu: IntegersOnGpu) -> None:
    layer = trained(image_layer())
    query, points, value, shapes = inputs("image")
    table = torch.tensor(shapes)
    layer(query, points, value, table)
    table[0] = table[0].flip(0)
    for _ in range(2):
        expected = layer(query, points, value, OTHER)
        assert torch.equal(layer(query, points, value, table), expected)
    # A copy has its own version, and another tensor of the same numbers is another tensor.
    layer(query, points, value, copy.deepcopy(table))
    assert len(shapes_on_gpu.reads) == 3


def test_a_tensor_of_inference_mode_has_no_version_and_is_always_read(
    shapes_on_gpu: IntegersOnGpu,
) -> None:
    layer = trained(image_layer())
    query, points, value, shapes = inputs("image")
    with torch.inference_mode():
        table = torch.tensor(shapes)
        layer(query, points, value, table)
        table[0] = table[0].flip(0)
        assert torch.equal(layer(query, points, value, table), layer(query, points, value, OTHER))
    assert len(shapes_on_gpu.reads) == 2


def test_rows_are_forgotten_with_their_tensor(shapes_on_gpu: IntegersOnGpu) -> None:
    gc.collect()
    before = len(_shape_tensors._known)
    tables = [torch.tensor([(2, 3)]) for _ in range(5)]
    for table in tables:
        assert _shape_tensors.read_rows("shapes", table, torch.zeros(1, 6)) == ((2, 3),)
    shapes_on_gpu.reads.clear()
    assert len(_shape_tensors._known) == before + 5
    del table, tables
    gc.collect()
    assert len(_shape_tensors._known) == before


def test_nothing_is_read_while_a_graph_is_captured(shapes_on_gpu: IntegersOnGpu) -> None:
    layer = trained(image_layer())
    query, points, value, shapes = inputs("image")
    table = torch.tensor(shapes)
    shapes_on_gpu.capturing = True
    message = "input_spatial_shapes cannot be read from its device while a CUDA graph is captured"
    with pytest.raises(RuntimeError, match=f"{message}: pass rows of Python ints, or call once"):
        layer(query, points, value, table)
    shapes_on_gpu.capturing = False
    expected = layer(query, points, value, table)  # the call before the capture
    shapes_on_gpu.capturing = True
    assert torch.equal(layer(query, points, value, table), expected)
    with torch.inference_mode():
        table = torch.tensor(shapes)
        with pytest.raises(
            RuntimeError, match="and outside inference mode, where it has a version"
        ):
            layer(query, points, value, table)


# -- on the CPU --------------------------------------------------------------------------------


def test_a_tensor_on_the_cpu_is_always_read() -> None:
    """It costs nothing, and others may write to its memory."""
    layer = trained(image_layer())
    query, points, value, shapes = inputs("image")
    table = torch.tensor(shapes)
    layer(query, points, value, table)
    table.numpy()[0] = OTHER[0]  # no new version
    assert torch.equal(layer(query, points, value, table), layer(query, points, value, OTHER))


# -- under a compiler --------------------------------------------------------------------------


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer: MSDeformAttn = trained(image_layer())

    def forward(self, query: Tensor, points: Tensor, value: Tensor, shapes: Any) -> Tensor:
        out: Tensor = self.layer(query, points, value, shapes)
        return out.relu()


# After a break Dynamo looks at the results of the first graph, with a warning filter of its own.
# PyTorch itself looks at .grad where a graph breaks.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_with_a_graph_break(shapes_on_gpu: IntegersOnGpu) -> None:
    torch._dynamo.reset()
    model = _Model()
    compiled = torch.compile(model, backend="aot_eager")
    query, points, value, shapes = inputs("image")
    for rows in (shapes, OTHER):
        table = torch.tensor(rows)
        for _ in range(2):
            expected = model(query, points, value, rows)
            torch.testing.assert_close(compiled(query, points, value, table), expected)
    assert len(shapes_on_gpu.reads) == 2


def test_compiled_as_one_graph_the_error_says_what_to_do() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_Model(), fullgraph=True, backend="aot_eager")
    query, points, value, shapes = inputs("image")
    message = "pass rows of Python ints, or set torch._dynamo.config.capture_scalar_outputs = True"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=re.escape(message)):
        compiled(query, points, value, torch.tensor(shapes))


def test_compiled_as_one_graph_that_captures_scalars() -> None:
    torch._dynamo.reset()
    model = _Model()
    query, points, value, shapes = inputs("image")
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for rows in (shapes, OTHER):
            leaves = [query.clone().requires_grad_(), *model.parameters()]
            out = compiled(leaves[0], points, value, torch.tensor(rows))
            expected = model(leaves[0], points, value, rows)
            torch.testing.assert_close(out, expected)
            for got, want in zip(
                torch.autograd.grad(out.sum(), leaves),
                torch.autograd.grad(expected.sum(), leaves),
                strict=True,
            ):
                torch.testing.assert_close(got, want)
        for wrong in ([(5, 6), (3, 4)], [(-5, -6), (3, 3)]):
            with pytest.raises(RuntimeError, match="Runtime assertion failed"):
                compiled(query, points, value, torch.tensor(wrong))


@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_exported(strict: bool) -> None:
    torch._dynamo.reset()
    model = _Model()
    query, points, value, shapes = inputs("image")
    with warnings.catch_warnings():
        # torch.export's own use of its deprecated parts is none of ours.
        warnings.simplefilter("ignore")
        args = (query, points, value, torch.tensor(shapes))
        exported = torch.export.export(model, args, strict=strict).module()
    for rows in (shapes, OTHER):
        expected = model(query, points, value, rows)
        torch.testing.assert_close(exported(query, points, value, torch.tensor(rows)), expected)
