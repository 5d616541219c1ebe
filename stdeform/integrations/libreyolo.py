"""LibreYOLO on this library's operator, through its kernel registry; read in 1.6.0.

    import stdeform.integrations.libreyolo as adapter; adapter.enable()

The registry then has a kernel named "stdeform" for CPU and CUDA, with gradients, before its own.
These models ask it, on every device: Deformable DETR, DINO, LW-DETR, RF-DETR, RT-DETR (v1, v2, v4),
D-FINE, DOME-DETR, DEIM (v1, v2), TinyFormer, EC, Grounding DINO and OV-DEIM; GTR does not. They do
not ask while they are compiled, traced or exported, nor where the points differ by level, as they
do in EC's detectors and in all sizes of D-FINE and DEIM but the smallest.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .. import _native
from . import _arguments, _projects, _replacing

__all__ = ["disable", "enable"]

_REGISTRY = "libreyolo.kernels"
_SLOT = "ms_deform_attn"
_NAME = "stdeform"
_registry: ModuleType | None = None  # that has it


def enable() -> list[str]:
    """Registers the operator, to be tried first; again, it does the same.

    Returns:
        The name of the slot; nothing where the environment variable `LIBREYOLO_KERNELS` selects
        another kernel.

    Raises:
        ModuleNotFoundError: LibreYOLO is not installed.
        UnsupportedVersionError: The installed version has another registry. Nothing is registered.
    """
    global _registry
    registry = _projects.find_module(_REGISTRY)
    for name, parameters in {
        "register": ("op", "impl", "name", "predicate"),
        "unregister": ("op", "name"),
        "resolve": ("op",),
        "clear_cache": (),
    }.items():
        _replacing.check_function(registry, name, parameters)
    # It registers LibreYOLO's own kernels. Done later, they would come before this.
    _projects.find_module(f"{_REGISTRY}.attention.{_SLOT}")
    disable()
    registry.register(_SLOT, _attend, name=_NAME)
    registry.clear_cache()  # neither `register` nor `unregister` does so in 1.6.0
    _registry = registry
    return [f"{_REGISTRY}.{_SLOT}"] if registry.resolve(_SLOT) is _attend else []


def disable() -> None:
    """Undoes `enable`; again, it does nothing."""
    global _registry
    if _registry is not None:
        _registry.unregister(_SLOT, _NAME)
        _registry.clear_cache()
        _registry = None


def _attend(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor,  # [L, 2]
    sampling_locations: Tensor,  # [B, Q, M, L, K, 2]
    attention_weights: Tensor,  # [B, Q, M, L, K]
) -> Tensor | None:  # [B, Q, M * D] in the dtype of `value`; None: another kernel is tried
    if _native.missing(value.device.type):
        return None
    out = _arguments.attend(value, spatial_shapes, None, sampling_locations, attention_weights)
    return out.to(value.dtype)
