"""RT-DETR of Ultralytics on this library's operator; read in 8.4.190.

    import stdeform.integrations.ultralytics as adapter; adapter.enable()

While a model is exported or traced, its own function runs, so that every format works as before.
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
        ModuleNotFoundError: Ultralytics is not installed.
        UnsupportedVersionError: The installed version lacks the function, or it takes other
            arguments. Nothing is replaced.
    """
    return _switch.enable()


def disable() -> None:
    """Undoes `enable`; again, it does nothing."""
    _switch.disable()


def _replacements() -> Iterator[Replacement]:
    layers = _projects.find_module("ultralytics.nn.modules.transformer")
    yield _projects.replace(layers, "multi_scale_deformable_attn_pytorch", _attend)


def _attend(
    value: Tensor,  # [B, S, M, D]
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,  # [B, Q, M, L * K, 2]
    attention_weights: Tensor,  # [B, Q, M, L * K]
) -> Tensor:  # [B, Q, M * D]
    return _arguments.attend_flat(
        value, value_spatial_shapes, sampling_locations, attention_weights
    )


_switch = Switch(_replacements)
