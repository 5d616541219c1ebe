"""RF-DETR on this library's operator; read in 1.11.2.

    import stdeform.integrations.rfdetr as adapter; adapter.enable()

While a model is exported or traced, its own function runs, so that every format works as before.
So what `inference(compile=True)` makes by tracing, which is RF-DETR's default, is without the
operator; `inference(compile=False)` and `compile_backend="inductor"` are with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from . import _arguments, _projects
from ._arguments import Shapes
from ._replacing import Replacement, Switch

__all__ = ["disable", "enable"]


def enable() -> list[str]:
    """Puts the operator into the layers of all models; again, it does nothing.

    Returns:
        The name of the function that is replaced.

    Raises:
        ModuleNotFoundError: RF-DETR is not installed.
        UnsupportedVersionError: The installed version lacks the function, or it takes other
            arguments. Nothing is replaced.
    """
    return _switch.enable()


def disable() -> None:
    """Undoes `enable`; again, it does nothing."""
    _switch.disable()


def _replacements() -> Iterator[Replacement]:
    layers = _projects.find_module("rfdetr.models.ops.modules.ms_deform_attn")
    yield _projects.replace(layers, "ms_deform_attn_core_pytorch", _attend)


def _attend(
    value: Tensor,  # [B, M, D, S]
    value_spatial_shapes: Tensor,
    sampling_locations: Tensor,  # [B, Q, M, L, K, 2], or [B, Q, M, L * K, 2] in export mode
    attention_weights: Tensor,  # [B, Q, M, L * K]
    value_spatial_shapes_hw: Shapes | None = None,
) -> Tensor:  # [B, Q, M * D]
    if value_spatial_shapes_hw is None:
        value_spatial_shapes_hw = value_spatial_shapes
    return _arguments.attend_flat(
        value.permute(0, 3, 1, 2),
        value_spatial_shapes_hw,
        sampling_locations.flatten(3, -2),
        attention_weights,
    )


_switch = Switch(_replacements)
