"""Code for the compiled extension `MultiScaleDeformableAttention`, on this library's operator.

Deformable DETR, DINO, Mask2Former, ViT-Adapter and many others compile that extension and import
it. Call `enable()` before they do, and they run unchanged, without compiling anything.
"""

from __future__ import annotations

import sys
from types import ModuleType

from . import extension
from .functions import (
    MSDeformAttnFunction,
    ms_deform_attn_core_pytorch,
    ms_deform_attn_core_pytorch_3D,
)
from .modules import MSDeformAttn

__all__ = [
    "MSDeformAttn",
    "MSDeformAttnFunction",
    "disable",
    "enable",
    "ms_deform_attn_core_pytorch",
    "ms_deform_attn_core_pytorch_3D",
]

_NAME = "MultiScaleDeformableAttention"
_before: ModuleType | None = None  # what had the name when it was taken


def enable() -> None:
    """Makes `import MultiScaleDeformableAttention` find this library; again, it does nothing.

    Modules that have imported the compiled extension before keep it.
    """
    global _before
    if sys.modules.get(_NAME) is not extension:
        _before = sys.modules.get(_NAME)
        sys.modules[_NAME] = extension


def disable() -> None:
    """Undoes `enable`, so that the name means what it meant before; again, it does nothing.

    Modules that have imported the extension meanwhile keep this library's.
    """
    if sys.modules.get(_NAME) is extension:
        del sys.modules[_NAME]
        if _before is not None:
            sys.modules[_NAME] = _before
