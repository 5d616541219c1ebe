"""mmcv's deformable attention, and what others build on it, on this library's operator.

    import stdeform.integrations.mmcv as adapter; adapter.enable()

Read in mmcv 2.2.0 and onedl-mmcv 2.3.6. It holds for mmdetection's and mmdetection3d's models, and
for BEVFormer and the many projects that have its two functions: they call mmcv's extension. For
mmcv-lite there is nothing to do, since it cannot import `mmcv.ops`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from . import _projects, _replacing
from ._arguments import Shapes
from ._replacing import Replacement, Switch
from .msda import extension, functions

__all__ = ["disable", "enable"]

_FUNCTION = "multi_scale_deformable_attn_pytorch"
_CLASS = "MultiScaleDeformableAttnFunction"


def enable() -> list[str]:
    """Puts the operator into the layers of all models; again, it does nothing.

    Modules that import mmcv's function in plain PyTorch between this and `disable` keep this
    library's.

    Returns:
        The names of what is replaced.

    Raises:
        ModuleNotFoundError: mmcv is not installed, or is mmcv-lite.
        UnsupportedVersionError: The installed version lacks one of the functions, or it takes other
            arguments. Nothing is replaced.
    """
    return _switch.enable()


def disable() -> None:
    """Undoes `enable`; again, it does nothing."""
    _switch.disable()


def _replacements() -> Iterator[Replacement]:
    layers = _projects.find_module("mmcv.ops.multi_scale_deform_attn")
    own = getattr(layers, _FUNCTION, None)
    by = _projects.replace(layers, _FUNCTION, functions.ms_deform_attn_core_pytorch).by
    for module in tuple(sys.modules.values()):
        if own is getattr(module, "__dict__", {}).get(_FUNCTION):  # None blocks an import
            yield Replacement(module, _FUNCTION, by)
    function: Any = getattr(layers, _CLASS, None)
    if function is None:
        raise _replacing.unsupported(layers, f"has no class {_CLASS}")
    _replacing.check_function(function, "forward", ("ctx", *_projects.parameters(_forward)))
    apply = _projects.unless_exporting(function.apply, _forward)
    yield Replacement(function, "apply", staticmethod(apply))
    compiled = _projects.find_module("mmcv._ext")
    yield Replacement(compiled, "ms_deform_attn_forward", _forward)
    yield Replacement(compiled, "ms_deform_attn_backward", _backward)


def _forward(
    value: Tensor,  # [B, S, M, D]
    value_spatial_shapes: Shapes,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,  # [B, Q, M, L, K, 2]
    attention_weights: Tensor,  # [B, Q, M, L, K]
    im2col_step: int,
) -> Tensor:  # [B, Q, M * D] in the dtype of `value`
    """Of the extension, and of the class that calls it."""
    out = extension.ms_deform_attn_forward(
        value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
    )
    return out.to(value.dtype)


def _backward(
    value: Tensor,
    value_spatial_shapes: Shapes,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,  # [B, Q, M * D]
    grad_value: Tensor,  # this and the next two are written to
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Of the extension."""
    grads = extension.ms_deform_attn_backward(
        value,
        value_spatial_shapes,
        value_level_start_index,
        sampling_locations,
        attention_weights,
        grad_output,
    )
    for out, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        out.copy_(grad)


_switch = Switch(_replacements)
