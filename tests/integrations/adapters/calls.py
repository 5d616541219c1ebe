"""The projects' functions, called with the arguments of the operator."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stdeform.testing import make_problem
from tests.integrations.adapters import fake_projects
from tests.integrations.adapters.fake_projects import BEVFORMER, starts

ADAPTERS = ("ultralytics", "rfdetr", "groundingdino", "detrex", "mmcv", "libreyolo")
LAYERS = {
    "ultralytics": "ultralytics.nn.modules.transformer",
    "rfdetr": "rfdetr.models.ops.modules.ms_deform_attn",
    "groundingdino": "groundingdino.models.GroundingDINO.ms_deform_attn",
    "detrex": "detrex.layers.multi_scale_deform_attn",
    "mmcv": "mmcv.ops.multi_scale_deform_attn",
    "libreyolo": "libreyolo.kernels.attention.ms_deform_attn",
    "bevformer": BEVFORMER,
}
SHAPES = [[5, 7], [3, 4], [2, 2]]
PLAIN = "multi_scale_deformable_attn_pytorch"
CLASS = "MultiScaleDeformableAttnFunction"


def layers(project: str) -> Any:
    """The module whose function the project's layers call."""
    return importlib.import_module(LAYERS[project])


def adapter(project: str) -> Any:
    return importlib.import_module(f"stdeform.integrations.{project}")


def ultralytics(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return layers("ultralytics").multi_scale_deformable_attn_pytorch(
        value, SHAPES, locations.flatten(3, 4), weights.flatten(3)
    )


def rfdetr(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return layers("rfdetr").ms_deform_attn_core_pytorch(
        value.permute(0, 2, 3, 1).contiguous(), torch.tensor(SHAPES), locations, weights.flatten(3)
    )


def rfdetr_in_export_mode(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return layers("rfdetr").ms_deform_attn_core_pytorch(
        value.permute(0, 2, 3, 1).contiguous(),
        torch.tensor(SHAPES),
        locations.flatten(3, 4),
        weights.flatten(3),
        value_spatial_shapes_hw=[tuple(row) for row in SHAPES],
    )


def on_cpu(project: str, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return getattr(layers(project), PLAIN)(value, torch.tensor(SHAPES), locations, weights)


def on_cuda(project: str, value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    """Here on the CPU, too."""
    shapes = torch.tensor(SHAPES)
    function = getattr(layers(project), CLASS)
    return function.apply(value, shapes, starts(shapes), locations, weights, 64)


def plain(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return fake_projects.plain(value, torch.tensor(SHAPES), locations, weights)


def libreyolo(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    out = layers("libreyolo").maybe_ms_deform_attn(value, torch.tensor(SHAPES), locations, weights)
    return plain(value, locations, weights) if out is None else out


Call = Callable[[Tensor, Tensor, Tensor], Any]
CALLS: dict[str, tuple[str, Call]] = {
    "ultralytics": ("ultralytics", ultralytics),
    "rfdetr": ("rfdetr", rfdetr),
    "rfdetr in export mode": ("rfdetr", rfdetr_in_export_mode),
    "groundingdino": ("groundingdino", partial(on_cpu, "groundingdino")),
    "detrex": ("detrex", partial(on_cpu, "detrex")),
    "detrex on CUDA": ("detrex", partial(on_cuda, "detrex")),
    "mmcv": ("mmcv", partial(on_cpu, "mmcv")),
    "mmcv on CUDA": ("mmcv", partial(on_cuda, "mmcv")),
    "bevformer": ("mmcv", partial(on_cpu, "bevformer")),
    "bevformer on CUDA": ("mmcv", partial(on_cuda, "bevformer")),
    "libreyolo": ("libreyolo", libreyolo),
}


class _Count(TorchDispatchMode):
    """Counts the calls of the operator and of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0, 0]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls[0] += function is torch.ops.stdeform.st_deform_attn.default
        self.calls[1] += function is torch.ops.stdeform.st_deform_attn_backward.default
        return function(*args, **kwargs or {})


def inputs() -> list[Tensor]:
    problem = make_problem(SHAPES, kink_margin=0.1).requires_grad_()
    return [problem.value, problem.sampling_locations, problem.attention_weights]


def run(call: Call) -> tuple[list[Tensor], list[int]]:
    """The result of a call and its gradients, and how often the operator was called for each."""
    tensors = inputs()
    with _Count() as count:
        out = call(*tensors)
        weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
        grads = torch.autograd.grad(out, tensors, weights)
    return [out, *grads], count.calls


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-5)
