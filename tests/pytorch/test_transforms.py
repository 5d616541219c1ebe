"""Every transform, eager and inside a compiler, against the eager reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.utils import _pytree

from stdeform import _dispatch, _ops
from tests.support.cases import arguments, draw, operator

# PyTorch compiles some of its own forward-mode formulas with torch.jit.script, which it deprecates.
pytestmark = [
    pytest.mark.usefixtures("needs_native"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]

Function = Callable[..., Any]


def _tangents(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(arg.cos() for arg in args)


def _loss(attend: Function) -> Function:
    return lambda *args: attend(*args).square().sum()


def _grad(attend: Function) -> Function:
    return lambda *args: torch.func.grad(_loss(attend), tuple(range(len(args))))(*args)


def _vjp(attend: Function) -> Function:
    def vjp(*args: Tensor) -> Any:
        out, pull = torch.func.vjp(attend, *args)
        return out, pull(out.sin())

    return vjp


def _jvp(attend: Function) -> Function:
    return lambda *args: torch.func.jvp(attend, args, _tangents(args))


def _dual_level(attend: Function) -> Function:
    def dual_level(*args: Tensor) -> Any:
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, args, _tangents(args))
            return forward_ad.unpack_dual(attend(*duals)).tangent

    return dual_level


def _jacobian(transform: Function) -> Function:
    return lambda attend: lambda *args: transform(attend, tuple(range(len(args))))(*args)


def _hessian(attend: Function) -> Function:
    return lambda *args: torch.func.hessian(_loss(attend), len(args) - 2)(*args)


TRANSFORMS: dict[str, Function] = {
    "plain": lambda attend: attend,
    "grad": _grad,
    "vjp": _vjp,
    "jvp": _jvp,
    "dual level": _dual_level,
    "vmap": torch.vmap,
    "jacrev": _jacobian(torch.func.jacrev),
    "jacfwd": _jacobian(torch.func.jacfwd),
    "hessian": _hessian,
    "vmap of grad": lambda attend: torch.vmap(_grad(attend)),
    "grad of vmap": lambda attend: _grad(torch.vmap(attend)),
    "jvp of grad": lambda attend: _jvp(_grad(attend)),
    "grad of grad": lambda attend: _grad(lambda *args: _grad(attend)(*args)[0]),
}
# AOTAutograd takes long over second derivatives of the reference, so that these stop at Dynamo,
# which decides how the operator is called.
DEEP = ("jacfwd", "hessian", "jvp of grad", "grad of grad")


def _problem(form: str, name: str) -> tuple[Function, Function, list[Tensor]]:
    """The operator and the reference of tensors alone, and what to call them with."""
    # With points that differ by level in one of the forms.
    shapes, num_points = ([(2, 3)], 3) if form == "locations" else ([(2, 2), (1, 2)], (1, 2))
    sizes = {"batch": 1, "num_queries": 2, "num_heads": 1, "head_dim": 2}
    problem = draw(form, shapes, **sizes, num_points=num_points, dtype=torch.float64)
    value, shapes, *others = arguments(problem, form)
    args = [value, *others]
    if "vmap" in name:
        args = [torch.stack([arg, 0.9 * arg]) for arg in args]

    def on(backend: str) -> Function:
        attend = operator(form, backend)
        return lambda value, *others: attend(value, shapes, *others, num_points=problem.num_points)

    return on("native"), on("reference"), args


def _assert_equal(got: Any, want: Any) -> None:
    got, want = _pytree.tree_leaves(got), _pytree.tree_leaves(want)
    assert any(tensor.any() for tensor in want)
    torch.testing.assert_close(got, want)


# Compiled in one form alone: what a compiler sees of both is the same.
@pytest.mark.parametrize(
    ("form", "way"), [("locations", "eager"), ("points", "eager"), ("locations", "compiled")]
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(form: str, name: str, way: str) -> None:
    native, reference, args = _problem(form, name)
    transformed = TRANSFORMS[name](native)
    if way == "compiled":
        torch._dynamo.reset()
        backend = "eager" if name in DEEP else "aot_eager"
        transformed = torch.compile(transformed, fullgraph=True, backend=backend)
    _assert_equal(transformed(*args), TRANSFORMS[name](reference)(*args))


def test_inductor() -> None:
    native, reference, args = _problem("locations", "vmap of grad")
    torch._dynamo.reset()
    compiled = torch.compile(TRANSFORMS["vmap of grad"](native), fullgraph=True)
    _assert_equal(compiled(*args), TRANSFORMS["vmap of grad"](reference)(*args))


@pytest.mark.parametrize("name", ["grad", "dual level"])
def test_a_compiler_that_hides_transforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the private symbols that tell of transforms, results are right all the same."""
    monkeypatch.setattr(_dispatch, "_sees_transforms", False)
    test_transform("locations", name, "compiled")


# Under a transform outside of it a compiled function runs eagerly, and Dynamo looks at its parts.
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
@pytest.mark.parametrize("names", [("plain", "grad", "jvp"), ("dual level", "grad", "plain")])
def test_a_compiled_function_under_one_transform_after_another(names: tuple[str, ...]) -> None:
    """What was compiled for one of them is not used for the next."""
    native, reference, args = _problem("locations", "")
    torch._dynamo.reset()
    compiled = torch.compile(native, backend="aot_eager")
    for name in (*names, *names):
        _assert_equal(TRANSFORMS[name](compiled)(*args), TRANSFORMS[name](reference)(*args))


@pytest.mark.parametrize("name", ["plain", "grad"])
def test_the_kernels_are_kept(name: str) -> None:
    """The graphs hold the operator once and its backward once, and none of the reference."""
    native, _, args = _problem("points", name)
    found: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(
        TRANSFORMS[name](native), fullgraph=True, backend=aot_autograd(fw_compiler=keep)
    )
    if name == "plain":
        compiled(*(arg.requires_grad_() for arg in args)).sum().backward()
    else:
        compiled(*args)
    assert found.count(_ops.st_deform_attn) == 1
    assert found.count(_ops.st_deform_attn_backward) == 1
    assert torch.ops.aten.gather.default not in found
