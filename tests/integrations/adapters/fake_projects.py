"""Other projects' modules by their names and signatures, in plain PyTorch, without the projects.

A module is made when it is imported, as that of an installed project would be.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stdeform.testing import composite

Shapes = Tensor | Sequence[Sequence[int]]
BEVFORMER = "projects.mmdet3d_plugin.bevformer.modules.decoder"
_CLASS = "MultiScaleDeformableAttnFunction"


class FakeProjects(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds these modules, and none of an installed project with the name of one of these.

    Attributes:
        modules: What fills a module, by its name; a package that is not here is empty.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Callable[[Any], None]] = dict(_MODULES)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(f"{each}.".startswith(f"{name}.") for each in self.modules):
            return ModuleSpec(name, self, is_package=True)
        if is_fake(name) and "." not in name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        self.modules.get(module.__name__, lambda module: None)(module)


def is_fake(name: str) -> bool:
    """Whether it is the name of a module of one of the projects."""
    return any(each.startswith(f"{name.partition('.')[0]}.") for each in _MODULES)


def starts(shapes: Tensor) -> Tensor:
    """Where each level starts in the value."""
    cells = shapes.prod(1)
    return cells.cumsum(0) - cells


# -- modules -----------------------------------------------------------------------------------


def _ultralytics(layers: Any) -> None:
    def multi_scale_deformable_attn_pytorch(
        value: Tensor,
        value_spatial_shapes: Shapes,
        sampling_locations: Tensor,
        attention_weights: Tensor,
    ) -> Tensor:
        levels = (len(value_spatial_shapes), -1)
        return composite(
            value,
            _rows(value_spatial_shapes),
            sampling_locations.unflatten(3, levels),
            attention_weights.unflatten(3, levels),
        )

    layers.multi_scale_deformable_attn_pytorch = multi_scale_deformable_attn_pytorch


def _rfdetr(layers: Any) -> None:
    def ms_deform_attn_core_pytorch(
        value: Tensor,
        value_spatial_shapes: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        value_spatial_shapes_hw: Shapes | None = None,
    ) -> Tensor:
        levels = (len(value_spatial_shapes), -1)
        return composite(
            value.permute(0, 3, 1, 2),
            _rows(value_spatial_shapes_hw or value_spatial_shapes),
            sampling_locations.flatten(3, -2).unflatten(3, levels),
            attention_weights.unflatten(3, levels),
        )

    layers.ms_deform_attn_core_pytorch = ms_deform_attn_core_pytorch


def plain(
    value: Tensor,
    value_spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`multi_scale_deformable_attn_pytorch` of mmcv, Grounding DINO and detrex."""
    return composite(value, _rows(value_spatial_shapes), sampling_locations, attention_weights)


def _forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Of a compiled extension."""
    assert torch.equal(value_level_start_index, starts(value_spatial_shapes))
    return composite(value, _rows(value_spatial_shapes), sampling_locations, attention_weights)


def _gradients(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> tuple[Tensor, ...]:
    """Of a compiled extension."""
    tensors = [each.detach().requires_grad_() for each in (value, sampling_locations)]
    tensors.append(attention_weights.detach().requires_grad_())
    with torch.enable_grad():
        out = composite(tensors[0], _rows(value_spatial_shapes), *tensors[1:])
    return torch.autograd.grad(out, tensors, grad_output)


def compiled(extension: Any) -> None:
    extension.ms_deform_attn_forward = _forward
    extension.ms_deform_attn_backward = _gradients


def _compiled_mmcv(extension: Any) -> None:
    def ms_deform_attn_backward(*inputs: Any, im2col_step: int) -> None:
        for out, grad in zip(inputs[6:], _gradients(*inputs[:6], im2col_step), strict=True):
            out += grad

    extension.ms_deform_attn_forward = _forward
    extension.ms_deform_attn_backward = ms_deform_attn_backward


def _add_function(module: Any, name: str, extension: Callable[[], Any], in_place: bool) -> None:
    """Adds the class that calls a compiled extension."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            value: Tensor,
            value_spatial_shapes: Tensor,
            value_level_start_index: Tensor,
            sampling_locations: Tensor,
            attention_weights: Tensor,
            im2col_step: int,
        ) -> Any:
            others = (sampling_locations.type_as(value), attention_weights.type_as(value))
            inputs = (value, value_spatial_shapes, value_level_start_index, *others)
            ctx.save_for_backward(*inputs)
            return extension().ms_deform_attn_forward(*inputs, im2col_step=im2col_step)

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            inputs = ctx.saved_tensors
            grads = [torch.zeros_like(inputs[i]) for i in (0, 3, 4)] if in_place else []
            returned = extension().ms_deform_attn_backward(
                *inputs, *grad_outputs, *grads, im2col_step=64
            )
            grad_value, grad_locations, grad_weights = grads if in_place else returned
            return grad_value, None, None, grad_locations, grad_weights, None

    Function.__module__, Function.__qualname__ = module.__name__, name
    setattr(module, name, Function)


def _groundingdino_py(layers: Any) -> None:
    layers.MultiScaleDeformableAttention = nn.Module
    layers.multi_scale_deformable_attn_pytorch = plain


def groundingdino_repository(layers: Any) -> None:
    """Other than that in the package index, it has a layer for CUDA."""
    _groundingdino_py(layers)
    with contextlib.suppress(ImportError):
        layers._C = importlib.import_module("groundingdino._C")
    _add_function(layers, _CLASS, lambda: layers._C, in_place=False)


def _detrex(project: Any) -> None:
    importlib.import_module("detrex.layers.multi_scale_deform_attn")


def _detrex_layers(layers: Any) -> None:
    groundingdino_repository(layers)
    try:
        layers._C = importlib.import_module("detrex._C")
    except ImportError:
        layers.MultiScaleDeformableAttention = type("Dummy", (), {})


def _mmcv(layers: Any) -> None:
    layers.ext_module = importlib.import_module("mmcv._ext")
    layers.multi_scale_deformable_attn_pytorch = plain
    _add_function(layers, _CLASS, lambda: layers.ext_module, in_place=True)


def _bevformer(module: Any) -> None:
    layers: Any = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    module.multi_scale_deformable_attn_pytorch = layers.multi_scale_deformable_attn_pytorch
    _add_function(module, _CLASS, lambda: layers.ext_module, in_place=True)


def _libreyolo(registry: Any) -> None:
    registered: list[tuple[str, Any, Any]] = []
    resolved: list[Any] = []

    def register(op: str, impl: Any, *, name: str, predicate: Any = None) -> None:
        registered.insert(0, (name, impl, predicate))

    def unregister(op: str, name: str) -> None:
        registered[:] = [each for each in registered if each[0] != name]

    def eligible() -> Iterator[Any]:
        return (impl for _, impl, predicate in registered if predicate is None or predicate())

    def resolve(op: str) -> Any:
        if os.environ.get("LIBREYOLO_KERNELS") == "off":
            return None
        if not resolved:
            resolved.append(next(eligible(), None))
        return resolved[0]

    registry.register, registry.unregister, registry.resolve = register, unregister, resolve
    registry.clear_cache, registry.eligible = resolved.clear, eligible
    registry.registered, registry.resolved = registered, resolved


def _libreyolo_attention(module: Any) -> None:
    registry: Any = importlib.import_module("libreyolo.kernels")

    def maybe_ms_deform_attn(*inputs: Any) -> Tensor | None:
        if registry.resolve("ms_deform_attn") is None:
            return None
        found = (impl(*inputs) for impl in registry.eligible())
        return next((out for out in found if out is not None), None)

    module.maybe_ms_deform_attn = maybe_ms_deform_attn
    registry.register("ms_deform_attn", plain, name="hub", predicate=lambda: False)


def _rows(shapes: Shapes) -> Sequence[Sequence[int]]:
    return shapes.tolist() if isinstance(shapes, Tensor) else shapes


_MODULES: dict[str, Callable[[Any], None]] = {
    "ultralytics.nn.modules.transformer": _ultralytics,
    "rfdetr.models.ops.modules.ms_deform_attn": _rfdetr,
    "groundingdino.models.GroundingDINO.ms_deform_attn": _groundingdino_py,
    "detrex._C": compiled,
    "detrex": _detrex,
    "detrex.layers.multi_scale_deform_attn": _detrex_layers,
    "mmcv._ext": _compiled_mmcv,
    "mmcv.ops.multi_scale_deform_attn": _mmcv,
    BEVFORMER: _bevformer,
    "libreyolo.kernels": _libreyolo,
    "libreyolo.kernels.attention.ms_deform_attn": _libreyolo_attention,
}
