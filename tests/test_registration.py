"""The operator as PyTorch's machinery sees it: opcheck, compile, export, vmap, fake and meta."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stdeform
from stdeform import _native, _ops
from stdeform.testing import Problem, assert_close
from tests.cases import (
    FORMS,
    VIDEO,
    arguments,
    assert_gradients_close,
    draw,
    forward,
    gradients,
    names,
    operator,
    oracle_forward,
    tensors,
)

pytestmark = pytest.mark.usefixtures("needs_native")


def _op_inputs(problem: Problem, form: str) -> tuple[Any, ...]:
    """The arguments of the registered operator."""
    shapes = [size for row in problem.spatial_shapes for size in row]
    if form == "locations":
        return (
            problem.value,
            shapes,
            None,
            problem.sampling_locations,
            problem.attention_weights,
        )
    return (
        problem.value,
        shapes,
        problem.reference_points,
        problem.sampling_offsets,
        problem.attention_logits,
    )


def _asking(args: Sequence[Any], wanted: Sequence[bool]) -> tuple[Any, ...]:
    asks = iter(wanted)
    return tuple(
        arg.detach().clone().requires_grad_(next(asks)) if isinstance(arg, Tensor) else arg
        for arg in args
    )


def _subsets(count: int) -> list[tuple[bool, ...]]:
    """None, each alone, all but each, all: of `count` inputs."""
    each = [tuple(i == j for j in range(count)) for i in range(count)]
    return [(False,) * count, *each, *(tuple(not x for x in one) for one in each), (True,) * count]


# -- opcheck -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_forward(form: str) -> None:
    problem = draw(form, dtype=torch.float64)
    for wanted in _subsets(len(names(form))):
        args = _asking(_op_inputs(problem, form), wanted)
        torch.library.opcheck(_ops.st_deform_attn, args)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_backward(form: str) -> None:
    problem = draw(form, dtype=torch.float64)
    inputs = _op_inputs(problem, form)
    count = len(names(form))
    for needs in _subsets(count)[1:]:
        # In the order of the inputs; without reference points nothing of them is needed.
        every = needs if count == 4 else (needs[0], False, *needs[1:])
        args = (problem.grad_out, *inputs, list(every))
        torch.library.opcheck(_ops.st_deform_attn_backward, args)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_backward_of_backward(form: str) -> None:
    # The plain second derivative is long to trace; an image with one level is enough.
    problem = draw(form, [(3, 2)], num_queries=2, num_points=1, dtype=torch.float64)
    inputs = (problem.grad_out, *_op_inputs(problem, form))
    needs = [True, form != "locations", True, True]
    every = _subsets(len(names(form)) + 1)[1:]
    for wanted in every:
        args = (*_asking(inputs, wanted), needs)
        tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if wanted in (every[0], every[-1]):
            tests.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(_ops.st_deform_attn_backward, args, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_opcheck_mixed_dtypes(dtype: torch.dtype) -> None:
    problem = draw("boxes", dtype=dtype, side_dtype=torch.float32)
    args = _asking(_op_inputs(problem, "boxes"), (True,) * 4)
    torch.library.opcheck(_ops.st_deform_attn, args)


def test_schemas_mutate_nothing() -> None:
    for op in (_ops.st_deform_attn, _ops.st_deform_attn_backward):
        assert not op._schema.is_mutable
        assert torch.Tag.pt2_compliant_tag in op.tags


# -- fake and meta -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_fake_tensors(form: str) -> None:
    with torch._subclasses.FakeTensorMode():
        problem = draw(form, dtype=torch.bfloat16, side_dtype=torch.float32)
        out = forward(problem, form, "native")
        assert out.shape == (2, 7, 32)
        assert out.dtype == torch.bfloat16
        for grad, tensor in zip(
            gradients(problem, form, "native"), tensors(arguments(problem, form)), strict=True
        ):
            assert grad.shape == tensor.shape
            assert grad.dtype == tensor.dtype


@pytest.mark.parametrize("form", FORMS)
def test_meta_tensors(form: str) -> None:
    problem = draw(form).map(lambda tensor: tensor.to("meta"))
    out = forward(problem, form, "auto")
    assert out.shape == (2, 7, 32)
    assert out.device.type == "meta"
    for grad, tensor in zip(
        gradients(problem, form, "auto"), tensors(arguments(problem, form)), strict=True
    ):
        assert grad.shape == tensor.shape


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_the_kernel_refuses_a_tensor_without_memory() -> None:
    """A fake tensor that reaches the core by mistake is an error, not a crash."""
    problem = draw("locations")
    with torch._subclasses.FakeTensorMode() as mode, warnings.catch_warnings():
        fake = [mode.from_tensor(tensor) for tensor in tensors(problem.attention)]
        # torch warns of the address that it is about to give as zero
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="value has no memory: a fake or meta tensor"):
            _native.forward(fake[0], [4, 6, 5, 2, 3, 3], None, fake[1], fake[2])


# -- who may look on ---------------------------------------------------------------------------


class _Watched(Tensor):
    """A subclass whose Python sees every operator below autograd."""

    seen: ClassVar[list[Any]] = []
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _Watched.seen.append(op)
        with torch._C._DisableTorchDispatch():
            return op(*args, **(kwargs or {}))


class _WatchCalls(TorchFunctionMode):
    """Sees the operator where it is called, and computes something differentiable of its own."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.recorded: list[bool] = []

    def __torch_function__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(op)
        with torch.enable_grad():
            self.recorded.append((torch.ones(1, requires_grad=True) * 2).requires_grad)
        return op(*args, **(kwargs or {}))


class _WatchKernels(TorchDispatchMode):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(op)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("recording", [False, True])
def test_modes_and_subclasses_see_the_operator(recording: bool) -> None:
    """Also where nothing is recorded and the call takes the short way."""
    problem = draw("points")
    args = problem.from_offsets
    expected = operator("points", "native")(*args)
    with torch.set_grad_enabled(recording):
        with _WatchCalls() as calls:
            assert torch.equal(operator("points", "native")(*args), expected)
        with _WatchKernels() as kernels:
            assert torch.equal(operator("points", "native")(*args), expected)
        for i in (0, 2, 3, 4):
            mixed = list(args)
            mixed[i] = args[i].as_subclass(_Watched)
            _Watched.seen.clear()
            assert torch.equal(operator("points", "native")(*mixed), expected)
            assert _ops.st_deform_attn in _Watched.seen
    assert _ops.st_deform_attn in calls.seen
    assert all(calls.recorded)
    assert _ops.st_deform_attn in kernels.seen


def test_the_profiler_sees_the_operator() -> None:
    problem = draw("points")
    with torch.no_grad(), torch.profiler.profile() as profiler:
        operator("points", "native")(*problem.from_offsets)
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["stdeform::st_deform_attn"] == 1


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_are_not_as_they_lie_in_memory(form: str) -> None:
    """The short way to the kernel is not for them: it would read the memory."""
    args = arguments(draw(form), form)
    attend = operator(form, "native")
    with torch.no_grad():
        expected = attend(*args)
        for i, arg in enumerate(args):
            if not isinstance(arg, Tensor):
                continue
            mixed = list(args)
            # A view of memory that holds the negatives.
            mixed[i] = torch.complex(torch.zeros_like(arg), -arg).conj().imag
            assert mixed[i].is_neg()
            assert torch.equal(attend(*mixed), expected)
            mixed[i] = arg.to_sparse()
            with pytest.raises(NotImplementedError, match="stdeform::st_deform_attn"):
                attend(*mixed)


def test_plain_tensors_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    args = draw("points").from_offsets
    monkeypatch.setattr(_ops, "st_deform_attn", lambda *_: pytest.fail("went through PyTorch"))
    with torch.no_grad():
        operator("points", "native")(*args)
    with torch.inference_mode():
        operator("points", "native")(*(a.clone() if isinstance(a, Tensor) else a for a in args))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_recorded_without_gradients(form: str) -> None:
    args = _asking(arguments(draw(form), form), (True,) * len(names(form)))
    with torch.no_grad():
        out = operator(form, "native")(*args)
    assert not out.requires_grad
    assert not out.is_inference()
    assert torch.equal(out, operator(form, "native")(*args))
    assert operator(form, "native")(*args).requires_grad
    with torch.inference_mode():
        assert torch.equal(operator(form, "native")(*args), out)


def test_any_one_input_that_asks_is_recorded() -> None:
    args = arguments(draw("points"), "points")
    for wanted in _subsets(4)[1:]:
        asking = _asking(args, wanted)
        assert operator("points", "native")(*asking).requires_grad


# -- torch.compile -----------------------------------------------------------------------------


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
        self.layer = stdeform.STDeformAttn(32, num_heads=2, num_levels=2, num_points=3)
        nn.init.normal_(self.layer.sampling_offsets.weight, std=0.3)
        nn.init.normal_(self.layer.attention_weights.weight)

    def forward(self, query: Tensor, points: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.layer(query, points, value, VIDEO)
        return out.relu()


# Inductor's own imports use what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_with_dynamic_batch_and_queries(compiler: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = _Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=compiler)
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


@pytest.mark.parametrize("form", FORMS)
def test_compile_both_forms_with_some_gradients(form: str) -> None:
    torch._dynamo.reset()
    problem = draw(form)
    compiled = torch.compile(operator(form, "native"), fullgraph=True, backend="aot_eager")
    for wanted in ((True,) * 4, (False, True, False, True), (True, False, False, False)):
        args = _asking(arguments(problem, form), wanted)
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


def test_compile_without_a_kernel_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    problem = draw("points")
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


# -- torch.func --------------------------------------------------------------------------------


def _stacked(form: str) -> tuple[list[Tensor], tuple[tuple[int, ...], ...]]:
    """Three problems of a kind, stacked: what a mapped axis holds."""
    drawn = [draw(form, seed=seed, num_queries=3) for seed in range(3)]
    columns = zip(*(tensors(arguments(problem, form)) for problem in drawn), strict=True)
    return [torch.stack(column) for column in columns], drawn[0].spatial_shapes


def _loop(
    function: Callable[..., Any], stacked: Sequence[Tensor], in_dims: Sequence[int | None]
) -> list[Any]:
    return [
        function(
            *(
                tensor[0] if dim is None else tensor[i]
                for tensor, dim in zip(stacked, in_dims, strict=True)
            )
        )
        for i in range(3)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_vmap_over_any_inputs(form: str) -> None:
    stacked, shapes = _stacked(form)

    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return operator(form, "native")(value, shapes, *others)

    for in_dims in itertools.product((0, None), repeat=len(stacked)):
        if set(in_dims) == {None}:
            continue
        given = [
            tensor[0] if dim is None else tensor
            for tensor, dim in zip(stacked, in_dims, strict=True)
        ]
        mapped = torch.vmap(attend, in_dims)(*given)
        assert torch.equal(mapped, torch.stack(_loop(attend, stacked, in_dims)))


def test_vmap_over_any_axis() -> None:
    stacked, shapes = _stacked("points")

    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return operator("points", "native")(value, shapes, *others)

    expected = torch.stack(_loop(attend, stacked, (0,) * 4))
    moved = [tensor.movedim(0, dim) for tensor, dim in zip(stacked, (1, 2, 4, -1), strict=True)]
    assert torch.equal(torch.vmap(attend, (1, 2, 4, -1))(*moved), expected)
    assert torch.equal(
        torch.vmap(attend, (1, 2, 4, -1), out_dims=1)(*moved), expected.movedim(0, 1)
    )


@pytest.mark.parametrize("form", FORMS)
def test_vmap_of_grad(form: str) -> None:
    stacked, shapes = _stacked(form)
    every = tuple(range(len(stacked)))

    def loss(value: Tensor, *others: Tensor) -> Tensor:
        return operator(form, "native")(value, shapes, *others).square().sum()

    for argnums in (every, (0,), every[1:]):
        grad = torch.func.grad(loss, argnums)
        for in_dims in ((0,) * len(stacked), (None, *(0,) * (len(stacked) - 1))):
            given = [
                tensor[0] if dim is None else tensor
                for tensor, dim in zip(stacked, in_dims, strict=True)
            ]
            mapped = torch.vmap(grad, in_dims)(*given)
            for got, *want in zip(mapped, *_loop(grad, stacked, in_dims), strict=True):
                assert torch.equal(got, torch.stack(want))


def test_vmap_twice() -> None:
    stacked, shapes = _stacked("points")
    twice = [torch.stack([tensor, tensor.flip(0)]) for tensor in stacked]

    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return operator("points", "native")(value, shapes, *others)

    once = torch.vmap(attend)
    expected = torch.stack([once(*stacked), once(*(tensor.flip(0) for tensor in stacked))])
    assert torch.equal(torch.vmap(once)(*twice), expected)


@pytest.mark.parametrize("form", FORMS)
def test_jacrev_is_every_gradient(form: str) -> None:
    problem = draw(form, [(2, 3, 2)], batch=1, num_queries=2, head_dim=2, dtype=torch.float64)
    args = tensors(arguments(problem, form))

    def attend(*changed: Tensor) -> Tensor:
        return operator(form, "native")(changed[0], problem.spatial_shapes, *changed[1:])

    jacobians = torch.func.jacrev(attend, argnums=tuple(range(len(args))))(*args)
    contracted = [
        torch.tensordot(problem.grad_out, jacobian, problem.grad_out.dim())
        for jacobian in jacobians
    ]
    assert_gradients_close(contracted, gradients(problem, form, "composite"), form)


# PyTorch compiles some of its own forward-mode formulas with torch.jit.script, which it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_forward_mode(form: str) -> None:
    """A tangent goes in and comes out, by torch.func and by dual numbers."""
    problem = draw(form, num_queries=3, dtype=torch.float64)
    args = tensors(arguments(problem, form))
    tangents = tuple(torch.randn_like(arg) for arg in args)

    def attend(*changed: Tensor) -> Tensor:
        return operator(form, "native")(changed[0], problem.spatial_shapes, *changed[1:])

    # The same number by reverse mode: <grad_out, J tangents>.
    grads = gradients(problem, form, "native")
    expected = sum((grad * t).sum() for grad, t in zip(grads, tangents, strict=True))
    _, by_func = torch.func.jvp(attend, tuple(args), tangents)
    assert_close((by_func * problem.grad_out).sum(), torch.as_tensor(expected), "gradient")
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(args, tangents, strict=True)]
        assert torch.equal(forward_ad.unpack_dual(attend(*duals)).tangent, by_func)


def test_hessian() -> None:
    problem = draw("points", [(2, 3)], batch=1, num_queries=1, head_dim=2, dtype=torch.float64)
    args = tensors(problem.from_offsets)

    def loss(backend: str) -> Callable[[Tensor], Tensor]:
        def of(offsets: Tensor) -> Tensor:
            out = operator("points", backend)(
                args[0], problem.spatial_shapes, args[1], offsets, args[3]
            )
            return out.square().sum()

        return of

    def hessian(backend: str) -> Tensor:
        jacobian = torch.func.jacrev(torch.func.jacrev(loss(backend)))(args[2])
        assert isinstance(jacobian, Tensor)
        return jacobian

    assert_close(hessian("native"), hessian("reference"), "gradient")
