"""What `torch.export`, traces and ONNX hold of the operator, by the form that was chosen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stdeform
from stdeform import export
from stdeform.export import FORMS
from stdeform.testing import make_problem
from tests.support.exported import openvino, run_openvino, to_onnx
from tests.support.layers import by_hand, image_layer, inputs, trained, video_layer

_OPERATOR = torch.ops.stdeform.st_deform_attn.default


class _Model(nn.Module):
    """A layer with the level table of its test inputs."""

    def __init__(self, axes: str = "image", **settings: Any) -> None:
        super().__init__()
        make: Callable[..., Any] = image_layer if axes == "image" else video_layer
        self.layer = trained(make(**settings))
        *self.example, self.shapes = inputs(axes)

    def forward(self, query: Tensor, points: Tensor, cells: Tensor) -> Tensor:
        out: Tensor = self.layer(query, points, cells, self.shapes)
        return out


# PyTorch's own deprecations; that one way is old, and that checks read sizes in it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


def _export(model: _Model) -> Any:
    return torch.export.export(model.eval(), tuple(model.example))


def _targets(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_without_a_form_a_program_keeps_the_operator() -> None:
    program = _export(_Model())
    assert str(_OPERATOR) in _targets(program)
    assert str(_OPERATOR) in _targets(program.run_decompositions())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("form", ["grid_sample", "gather"])
def test_a_form_leaves_core_aten_only(form: str, backend: str) -> None:
    model = _Model(backend=backend)
    with stdeform.export_form(form):
        program = _export(model)
    core = program.run_decompositions()
    targets = _targets(core)
    assert not any("stdeform" in target for target in targets)
    assert any("grid_sampler" in target for target in targets) == (form == "grid_sample")
    for node in core.graph.nodes:
        checks = "_assert_tensor_metadata" in str(node.target)  # of torch.export, for each `to`
        if isinstance(node.target, torch._ops.OpOverload) and not checks:
            assert torch.Tag.core in node.target.tags, node.target
    torch.testing.assert_close(
        core.module()(*model.example), model(*model.example), rtol=1e-5, atol=1e-6
    )


def test_the_decomposition_of_a_program_that_keeps_the_operator() -> None:
    model = _Model("video")
    program = _export(model)
    table = torch.export.default_decompositions()
    table.update(torch._decomp.get_decompositions([_OPERATOR]))
    core = program.run_decompositions(table)
    assert not any("stdeform" in target for target in _targets(core))
    torch.testing.assert_close(
        core.module()(*model.example), model(*model.example), rtol=1e-5, atol=1e-6
    )


def test_a_kept_program_to_onnx(tmp_path: Path) -> None:
    model = _Model("video")
    program = _export(model)
    exported = to_onnx(program, tuple(model.example), tmp_path / "program.onnx")  # type: ignore[arg-type]
    (out,) = exported.onnxruntime(*model.example)
    torch.testing.assert_close(out, model(*model.example), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_trace_in_a_form(backend: str) -> None:
    model = _Model(backend=backend).eval()
    with stdeform.export_form("gather"):
        traced = torch.jit.trace(model, tuple(model.example))
    assert "stdeform::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(*model.example), model(*model.example), rtol=1e-5, atol=1e-6)


def test_openvino_takes_the_model_itself() -> None:
    model = _Model("video").eval()
    example = tuple(model.example)
    with stdeform.export_form("gather"):
        converted = openvino.convert_model(model, example_input=example)
    (out,) = run_openvino(converted, example)
    torch.testing.assert_close(out, model(*example), rtol=1e-5, atol=1e-6)


def test_calls_that_are_not_recorded_compute_as_ever() -> None:
    model = _Model()
    expected = model(*model.example)
    with stdeform.export_form("gather"):
        assert torch.equal(model(*model.example), expected)


def test_a_compiler_keeps_the_operator() -> None:
    model, graphs = _Model(), []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph

    with stdeform.export_form("gather"):
        torch.compile(model, backend=backend)(*model.example)
    (graph,) = graphs
    assert any("st_deform_attn" in str(node.target) for node in graph.graph.nodes)


def test_another_thread_has_its_own_form() -> None:
    model, programs = _Model(), []
    with stdeform.export_form("gather"):
        other = threading.Thread(target=lambda: programs.append(_export(model)))
        other.start()
        other.join()
    assert str(_OPERATOR) in _targets(programs[0])


def test_forms_nest_and_end() -> None:
    model = _Model()

    def samples() -> bool:
        return any("grid_sampler" in target for target in _targets(_export(model)))

    with stdeform.export_form("gather"):
        with stdeform.export_form("grid_sample"):
            assert samples()
        assert not samples()
        with contextlib.suppress(KeyError), stdeform.export_form("grid_sample"):
            raise KeyError
        assert not samples()
    assert str(_OPERATOR) in _targets(_export(model))


@pytest.mark.parametrize("form", ["gathers", "::Node", "domain::", "a::b::c", "a b::c", "", None])
def test_other_forms(form: Any) -> None:
    rule = r"form must be grid_sample, gather or the domain::Name"
    with pytest.raises(ValueError, match=rule), stdeform.export_form(form):
        pass


@pytest.mark.parametrize("num_points", [3, (2, 3)])
def test_a_custom_node(num_points: Any, tmp_path: Path) -> None:
    model = _Model(num_points=num_points)
    exported = to_onnx(
        model.eval(), tuple(model.example), tmp_path / "node.onnx", form="vendor::Attend"
    )
    (node,) = (node for node in exported.nodes if node.domain == "vendor")
    assert node.op_type == "Attend"
    assert "GridSample" not in exported.operations
    # A stand-in for a plugin: the node's five inputs, through the function.
    before = exported.onnxruntime_until(node, *model.example)
    value, shapes, starts, locations, weights = before
    ragged = None if isinstance(num_points, int) else num_points
    assert shapes.dtype == starts.dtype == torch.int32  # as TensorRT's plugin takes them
    assert shapes.tolist() == [list(shape) for shape in model.shapes]
    assert starts.tolist() == stdeform.level_starts(model.shapes)
    attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    assert attributes == ({} if ragged is None else {"num_points": list(num_points)})
    attended = stdeform.st_deform_attn(
        value, shapes.tolist(), locations, weights, num_points=ragged
    )
    torch.testing.assert_close(
        model.layer.output_proj(attended), model(*model.example), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "record",
    [
        lambda model, path: to_onnx(model, tuple(model.example), path, dynamo=False),
        lambda model, path: _export(model),
        lambda model, path: torch.jit.trace(model, tuple(model.example)),
    ],
)
def test_a_custom_node_needs_the_newer_exporter(record: Any, tmp_path: Path) -> None:
    rule = r"'vendor::Attend' needs torch.onnx.export"
    with pytest.raises(RuntimeError, match=rule), stdeform.export_form("vendor::Attend"):
        record(_Model().eval(), tmp_path / "x.onnx")


@pytest.mark.parametrize("form", [None, "gather"])
def test_a_translation_of_ones_own_goes_first(form: str | None, tmp_path: Path) -> None:
    from onnxscript import opset18

    def translate(value: Any, *rest: Any) -> Any:
        return opset18.Flatten(opset18.Neg(value), axis=2)

    model = _Model().eval()
    exported = to_onnx(
        model,
        tuple(model.example),
        tmp_path / "own.onnx",
        form=form,
        custom_translation_table={_OPERATOR: translate},
        optimize=False,  # which would find that the shape is wrong
    )
    assert "Neg" in exported.operations
    assert "GridSample" not in exported.operations


def test_the_projects_own_layer(tmp_path: Path) -> None:
    from stdeform.integrations.msda import MSDeformAttn

    query, points, cells, shapes = inputs("image")
    layer = trained(MSDeformAttn(32, 2, 4, 3)).eval()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, query: Tensor, points: Tensor, cells: Tensor) -> Tensor:
            out: Tensor = self.layer(query, points, cells, torch.tensor(shapes), None)
            return out

    exported = to_onnx(Model(), (query, points, cells), tmp_path / "msda.onnx")
    (out,) = exported.onnxruntime(query, points, cells)
    expected = by_hand(layer, query, points, cells, shapes)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-5, atol=1e-6)


class _Function(nn.Module):
    """The function at given locations, with as many points on both levels."""

    def __init__(self, shapes: Any) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return stdeform.st_deform_attn(value, self.shapes, locations, weights)


def _program_of_any_batch(shapes: Any) -> tuple[_Function, Any, tuple[Tensor, ...]]:
    problem = make_problem(shapes, batch=3)
    value, _, *samples = problem.attention
    example = (value, *samples)
    free = ({0: torch.export.Dim.DYNAMIC},) * 3
    model = _Function(shapes)
    return model, torch.export.export(model, example, dynamic_shapes=free), example


def test_symbolic_sizes_ask_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of an operator that has a decomposition PyTorch would take shapes and strides from that.
    monkeypatch.setitem(torch._decomp.decomposition_table, _OPERATOR, None)
    _, program, _ = _program_of_any_batch(((4, 3), (1, 6)))
    (node,) = (node for node in program.graph.nodes if node.target is _OPERATOR)
    assert node.meta["val"].is_contiguous()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [[4, 3], [2, 4, 3]])
def test_forms_have_the_strides_of_the_operator(form: str, sizes: list[int]) -> None:
    value, _, *samples = make_problem([sizes]).attention
    with stdeform.export_form(form):
        assert export.attend(value, sizes, None, *samples, ()).is_contiguous()


@pytest.mark.slow
def test_aotinductor_keeps_the_operator_for_any_batch(tmp_path: Path) -> None:
    model, program, example = _program_of_any_batch(((4, 3), (2, 6)))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "function.pt2")
    )
    loaded = torch._inductor.aoti_load_package(package)
    for batch in (3, 2):
        inputs = [tensor[:batch].contiguous() for tensor in example]
        torch.testing.assert_close(loaded(*inputs), model(*inputs), rtol=0, atol=0)
