"""The CUDA branch behind PyTorch: streams, graphs, devices, waiting, determinism, memory.

Results themselves are tested with all backends, in tests/operator.
Without a GPU, they run on the emulated one of tests/cuda/emulated_gpu.py.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stdeform
from stdeform import _native, _ops
from stdeform.testing import (
    Problem,
    assert_close,
    composite_from_offsets,
    excess,
    make_problem,
)
from tests.cuda.emulated_gpu import DEVICE, HAS_GPU, only_a_gpu_shows
from tests.support.cases import (
    DTYPES,
    FORMS,
    VIDEO,
    arguments,
    asking,
    draw,
    names,
    subsets,
    tensors,
)

pytestmark = pytest.mark.usefixtures("gpu")


def _on_gpu(problem: Problem, device: str = DEVICE) -> Problem:
    return problem.map(lambda tensor: tensor.detach().to(device))


def _operator(form: str) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = (
        stdeform.st_deform_attn if form == "locations" else stdeform.st_deform_attn_from_offsets
    )
    return function


def _run(problem: Problem, form: str, backend: str = "native") -> list[Tensor]:
    """The result and every gradient."""
    args = [
        arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg
        for arg in arguments(problem, form)
    ]
    out = _operator(form)(*args, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, tensors(args), problem.grad_out)]


RUNS = 20 if HAS_GPU else 2
# Sums of the gradient of the value come in another order in each call. Without a GPU results are up
# to 2.4e-7 apart, one unit in the last place of numbers of about 2; a GPU may fuse more.
ANY_ORDER = {"rtol": 1e-5, "atol": 1e-5}


def _assert_same(actual: list[Tensor], expected: list[Tensor], form: str) -> None:
    """The same bits, except in the gradient of the value, which is summed in any order."""
    for name, one, other in zip(("result", *names(form)), actual, expected, strict=True):
        if name == "value":  # each may be as far from the truth as it is allowed to
            assert excess(one, other, "gradient") <= 2, name
        else:
            assert torch.equal(one, other), name


def _overwrite(target: Problem, source: Problem) -> None:
    """Copies every tensor in place; `dataclasses.astuple` would copy into copies."""
    for field in dataclasses.fields(target):
        tensor = getattr(target, field.name)
        if isinstance(tensor, Tensor):
            tensor.copy_(getattr(source, field.name))


# -- where and when ----------------------------------------------------------------------------


@only_a_gpu_shows("that work waits for what its stream holds")
@pytest.mark.parametrize("form", FORMS)
def test_a_stream_of_its_own(form: str) -> None:
    """The work waits for what the caller's stream holds, and later work waits for it."""
    problem = _on_gpu(draw(form, num_queries=97))
    expected = _run(problem, form)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = problem.map(lambda tensor: torch.full_like(tensor, torch.nan))
        torch.cuda._sleep(20_000_000)
        _overwrite(late, problem)
        actual = _run(late, form)
    torch.cuda.current_stream().wait_stream(stream)
    _assert_same(actual, expected, form)


@only_a_gpu_shows("that a graph captures all of a call's work")
@pytest.mark.parametrize("form", FORMS)
def test_graphs(form: str) -> None:
    """Captured once, replayed on other numbers."""
    problem = _on_gpu(draw(form, num_queries=97))
    for _ in range(3):
        _run(problem, form)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _run(problem, form)
    other = _on_gpu(draw(form, num_queries=97, seed=1))
    expected = _run(other, form)
    _overwrite(problem, other)
    for _ in range(3):
        graph.replay()
        _assert_same(captured, expected, form)


# PyTorch sets the mode and then warns of it, which would leave the mode set.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@only_a_gpu_shows("what waits for a device")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_nothing_waits_for_the_device(dtype: str) -> None:
    problem = _on_gpu(draw("points", dtype=DTYPES[dtype][0]))
    _run(problem, "points")
    try:
        torch.cuda.set_sync_debug_mode("error")
        _run(problem, "points")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_plain_tensors_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _on_gpu(draw("points"))
    expected = _operator("points")(*arguments(problem, "points"), backend="native")
    monkeypatch.setattr(_ops, "st_deform_attn", lambda *_: pytest.fail("went through PyTorch"))
    with torch.no_grad():
        found = _operator("points")(*arguments(problem, "points"), backend="native")
    assert torch.equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one() -> None:
    problem = draw("points", num_queries=97)
    expected = _run(_on_gpu(problem), "points")
    actual = _run(_on_gpu(problem, "cuda:1"), "points")
    assert torch.cuda.current_device() == 0
    assert actual[0].device.index == 1
    _assert_same([tensor.to("cuda:0") for tensor in actual], expected, "points")


# -- determinism -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_many_runs_give_the_same_bits(form: str, dtype: str) -> None:
    problem = draw(form, num_queries=500, dtype=DTYPES[dtype][0])
    problem = _on_gpu(problem)
    first = _run(problem, form)
    for _ in range(RUNS):
        _assert_same(_run(problem, form), first, form)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_deterministic_algorithms_give_the_same_bits(form: str, dtype: str) -> None:
    """On any stream, with any chunks, whatever else the device does meanwhile."""
    problem = _on_gpu(draw(form, num_queries=500, dtype=DTYPES[dtype][0]))
    torch.use_deterministic_algorithms(True)
    try:
        first = _run(problem, form)
        for turn in range(RUNS):
            _native.options.cuda_tuning = {"workspace_bytes": 0} if turn % 2 else {}
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                again = _run(problem, form)
            torch.cuda.current_stream().wait_stream(stream)
            assert all(map(torch.equal, again, first))
    finally:
        torch.use_deterministic_algorithms(False)
    _assert_same(_run(problem, form), first, form)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_bins_agree_with_the_direct_way(form: str, deterministic: bool) -> None:
    problem = _on_gpu(draw(form, num_queries=300, num_points=4, head_dim=48))
    _native.options.cuda_tuning = {"backward_bins": 0}
    _, *direct = _run(problem, form)
    _native.options.cuda_tuning = {"backward_bins": 1}
    torch.use_deterministic_algorithms(deterministic)
    try:
        _, *by_bins = _run(problem, form)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, one, other in zip(names(form), by_bins, direct, strict=True):
        assert_close(one, other.double(), "gradient", name)


# -- PyTorch around it -------------------------------------------------------------------------


def _op_inputs(form: str) -> tuple[Problem, tuple[Any, ...]]:
    """A problem, and the arguments of the registered operator."""
    problem = _on_gpu(draw(form, dtype=torch.float64))
    value, shapes, *rest = arguments(problem, form)
    sizes = [size for row in shapes for size in row]
    return problem, (value, sizes, None if form == "locations" else rest[0], *rest[-2:], [])


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_forward(form: str) -> None:
    _, inputs = _op_inputs(form)
    for wanted in ((False,) * 4, (True,) * 4):
        torch.library.opcheck(_ops.st_deform_attn, asking(inputs, wanted))


@pytest.mark.parametrize("form", ["locations", "points"])
def test_opcheck_backward(form: str) -> None:
    problem, inputs = _op_inputs(form)
    _, *each, _, _, _, _, every = subsets(4)
    for needs in (*each, every):
        args = (problem.grad_out, *inputs, list(needs))
        torch.library.opcheck(_ops.st_deform_attn_backward, args)


# Inductor's own imports use what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_compile(form: str) -> None:
    """With all gradients, and with one: those that are not requested have no elements."""
    torch._dynamo.reset()
    problem = _on_gpu(draw(form, num_queries=33))
    shapes = problem.spatial_shapes

    def attend(value: Tensor, *rest: Tensor) -> Tensor:
        return _operator(form)(value * 2, shapes, *rest) + 1

    # What Inductor makes for a processor is no matter of this branch, and takes long.
    compiler = "inductor" if HAS_GPU else "aot_eager"
    _, *each = subsets(len(names(form)))
    everything, first, last = each[-1], each[0], each[len(names(form)) - 1]
    for wanted, backend in ((everything, compiler), (first, "aot_eager"), (last, "aot_eager")):
        given = tensors(asking(arguments(problem, form), wanted))
        leaves = [tensor for tensor in given if tensor.requires_grad]
        results = [
            [out, *torch.autograd.grad(out.square().sum(), leaves)]
            for out in (
                attend(*given),
                torch.compile(attend, fullgraph=True, backend=backend)(*given),
            )
        ]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, **ANY_ORDER)


def _layer_inputs(batch: int, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
    cells = sum(map(stdeform.num_cells, VIDEO))
    query, value = torch.randn(batch, num_queries, 32), torch.randn(batch, cells, 32)
    return query.to(DEVICE), torch.rand(batch, num_queries, 3).to(DEVICE), value.to(DEVICE)


class _Model(nn.Module):
    """A layer as a model calls it: its shapes are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = stdeform.STDeformAttn(32, num_levels=2, num_heads=2, num_points=3)

    def forward(self, query: Tensor, points: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.layer(query, points, value, VIDEO)
        return out.relu()


def test_one_compiled_graph_serves_all_sizes() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = _Model().to(DEVICE)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ((2, 7), (3, 5), (4, 11)):
        inputs = [tensor.requires_grad_() for tensor in _layer_inputs(*sizes)]
        leaves = [*inputs, *model.parameters()]
        results = [
            [out, *torch.autograd.grad(out.sum(), leaves)]
            for out in (model(*inputs), compiled(*inputs))
        ]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, **ANY_ORDER)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_export(tmp_path: Path) -> None:
    model = _Model().to(DEVICE).eval()
    batch, queries = torch.export.Dim("batch"), torch.export.Dim("queries")
    dynamic = ({0: batch, 1: queries}, {0: batch, 1: queries}, {0: batch})
    with warnings.catch_warnings():
        # torch.export's own use of its deprecated parts is none of ours.
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, _layer_inputs(2, 7), dynamic_shapes=dynamic)
        torch.export.save(exported, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert [node.target for node in exported.graph.nodes].count(_ops.st_deform_attn) == 1
    for sizes in ((2, 7), (5, 3)):
        inputs = _layer_inputs(*sizes)
        torch.testing.assert_close(loaded(*inputs), model(*inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    layer = stdeform.STDeformAttn(64, num_heads=4, num_points=4).to(DEVICE)
    shapes = [(3, 4, 5)]
    query = torch.randn(2, 60, 64, device=DEVICE, requires_grad=True)
    points = stdeform.reference_grid(shapes, device=DEVICE).expand(2, -1, -1, -1)
    full = layer(query, points, query, shapes)
    with torch.autocast(DEVICE, dtype):
        out = layer(query, points, query, shapes)
    assert out.dtype == dtype
    assert (out.float() - full).abs().max() < 30 * torch.finfo(dtype).eps * full.abs().max()
    out.float().square().sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("boxes", [False, True])
def test_layers_agree_with_the_reference_on_the_cpu(boxes: bool) -> None:
    torch.manual_seed(0)
    shapes = [(3, 4, 5), (2, 2, 3)]
    layer = stdeform.STDeformAttn(64, num_levels=2, num_heads=4, num_points=4).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    query, value = torch.randn(2, 7, 64).double(), torch.randn(2, 72, 64).double()
    points = torch.rand(2, 7, 2, 6 if boxes else 3).double()
    padding = torch.rand(2, 72) < 0.2
    results = []
    for device, layer.backend in (("cpu", "reference"), (DEVICE, "native")):
        moved = layer.to(device)
        leaves = [t.to(device).requires_grad_() for t in (query, points, value)]
        out = moved(*leaves, shapes, padding.to(device))
        grads = torch.autograd.grad(out.square().sum(), [*leaves, *moved.parameters()])
        results.append([out.detach(), *grads])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-9, atol=1e-9)


def test_too_many_levels_are_refused_by_name() -> None:
    problem = _on_gpu(draw("points", [(1, 1)] * 65))
    with pytest.raises(ValueError, match="at most 64 levels, got L = 65"):
        _operator("points")(*problem.from_offsets)


# -- memory ------------------------------------------------------------------------------------


def _peak(run: Callable[[], Any]) -> int:
    """Bytes beyond what was there before, at the worst moment."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@only_a_gpu_shows("what PyTorch's allocator holds")
def test_peak_memory_against_the_baseline() -> None:
    # Everything grows with the cells, of which there is a query at each.
    shape = (12, 10, 17) if HAS_GPU else (3, 4, 5)
    queries = stdeform.num_cells(shape)
    problem = make_problem(
        [shape], batch=1, num_queries=queries, num_heads=8, head_dim=48, num_points=32
    )
    problem = _on_gpu(problem)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors(problem.from_offsets)]

    def run(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        out = function(leaves[0], problem.spatial_shapes, *leaves[1:])
        return torch.autograd.grad(out, leaves, problem.grad_out)

    ours = _peak(lambda: run(stdeform.st_deform_attn_from_offsets))
    # Result, gradients of four inputs, and two of these once more per head or in float32; the list
    # of samples, twenty bytes each, and what is kept of bins and rows.
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    assert ours < 1.5 * gradients + 22 * problem.attention_logits.numel()
    assert _peak(lambda: run(composite_from_offsets)) > 5 * ours


def test_only_inputs_are_saved() -> None:
    problem = _on_gpu(draw("points"))
    leaves = [tensor.detach().requires_grad_() for tensor in tensors(problem.from_offsets)]
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stdeform.st_deform_attn_from_offsets(leaves[0], problem.spatial_shapes, *leaves[1:])
    assert {tensor.data_ptr() for tensor in saved} == {leaf.data_ptr() for leaf in leaves}
