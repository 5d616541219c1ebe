"""The operator under `torch.compile` and `torch.export`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stdeform
from stdeform import _ops
from stdeform.testing import assert_close
from tests.support.cases import (
    FORMS,
    IMAGE,
    VIDEO,
    arguments,
    asking,
    draw,
    operator,
    oracle_forward,
    tensors,
)

pytestmark = pytest.mark.usefixtures("needs_native")


# -- torch.compile -----------------------------------------------------------------------------


def test_the_import_does_not_load_the_compiler() -> None:
    # It takes as long as the import of torch itself.
    code = "import sys, stdeform; sys.exit('torch._dynamo' in sys.modules)"
    root = Path(stdeform.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def _layer_inputs(
    layer: stdeform.STDeformAttn, batch: int, num_queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + num_queries)

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator)

    cells = sum(map(stdeform.num_cells, VIDEO))
    return (
        uniform(batch, num_queries, layer.embed_dim) - 0.5,
        uniform(batch, num_queries, 3),
        uniform(batch, cells, layer.embed_dim) - 0.5,
    )


class _Model(nn.Module):
    """A layer as a model calls it: its shapes are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = stdeform.STDeformAttn(32, num_levels=2, num_heads=2, num_points=3)
        nn.init.normal_(self.layer.sampling_offsets.weight, std=0.3)
        nn.init.normal_(self.layer.attention_weights.weight)

    def forward(self, query: Tensor, points: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.layer(query, points, value, VIDEO)
        return out.relu()


# Inductor's own imports use what torch has deprecated.
_imports_inductor = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@_imports_inductor
def test_compile_with_dynamic_batch_and_queries() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = _Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for sizes in ((2, 7), (3, 5), (4, 11)):
        inputs = [tensor.requires_grad_() for tensor in _layer_inputs(model.layer, *sizes)]
        expected, out = model(*inputs), compiled(*inputs)
        torch.testing.assert_close(out, expected)
        leaves = [*inputs, *model.parameters()]
        for got, want in zip(
            torch.autograd.grad(out.sum(), leaves),
            torch.autograd.grad(expected.sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(got, want)
    # One graph serves all sizes.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1


@_imports_inductor
def test_inductor_takes_the_operator_where_ci_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it refuses operators that have a decomposition and no lowering."""
    from torch._inductor import lowering

    monkeypatch.setenv("CI", "true")
    # As in a process that has compiled nothing yet.
    monkeypatch.delitem(lowering.lowerings, _ops.st_deform_attn, raising=False)
    lowering.FALLBACK_ALLOW_LIST.discard("stdeform::st_deform_attn")
    torch._dynamo.reset()
    attend, inputs = operator("points", "native"), draw("points").from_offsets
    with torch._inductor.config.patch(fx_graph_cache=False):
        compiled = torch.compile(attend, fullgraph=True)
        assert torch.equal(compiled(*inputs), attend(*inputs))


@pytest.mark.parametrize("form", FORMS)
def test_compile_both_forms_with_some_gradients(form: str) -> None:
    torch._dynamo.reset()
    problem = draw(form)
    compiled = torch.compile(operator(form, "native"), fullgraph=True, backend="aot_eager")
    for wanted in ((True,) * 4, (False, True, False, True), (True, False, False, False)):
        args = asking(arguments(problem, form), wanted)
        leaves = [tensor for tensor in tensors(args) if tensor.requires_grad]
        got = torch.autograd.grad(compiled(*args), leaves, problem.grad_out)
        want = torch.autograd.grad(operator(form, "native")(*args), leaves, problem.grad_out)
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other)


def test_compile_with_a_table_of_dynamic_sizes() -> None:
    """The level table may hold the sizes of a tensor, which a compiler keeps as symbols."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def attend(video: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        shapes = [tuple(video.shape[1:4])]
        return stdeform.st_deform_attn_from_offsets(
            video.flatten(1, 3), shapes, points, offsets, logits, backend="native"
        )

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((4, 6, 5), (3, 5, 4), (7, 2, 3)):
        problem = draw("points", [shape])
        value, _, *others = problem.from_offsets
        video = value.unflatten(1, shape)
        assert torch.equal(compiled(video, *others), attend(video, *others))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compile_the_reference() -> None:
    torch._dynamo.reset()
    problem = draw("points", IMAGE)
    compiled = torch.compile(operator("points", "reference"), fullgraph=True, backend="aot_eager")
    assert_close(compiled(*problem.from_offsets), oracle_forward(problem, "points"), "forward")


# -- torch.export ------------------------------------------------------------------------------


def test_export_save_and_load(tmp_path: Path) -> None:
    model = _Model().eval()
    batch, queries = torch.export.Dim("batch"), torch.export.Dim("queries")
    dynamic = ({0: batch, 1: queries}, {0: batch, 1: queries}, {0: batch})
    with warnings.catch_warnings():
        # torch.export's own use of its deprecated parts is none of ours.
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            model, _layer_inputs(model.layer, 2, 7), dynamic_shapes=dynamic
        )
        torch.export.save(exported, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(_ops.st_deform_attn) == 1
    for sizes in ((2, 7), (5, 3)):
        inputs = _layer_inputs(model.layer, *sizes)
        torch.testing.assert_close(loaded(*inputs), model(*inputs))
