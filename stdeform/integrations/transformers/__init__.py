"""Fifteen model families of Hugging Face transformers on this library's operator.

    import stdeform.integrations.transformers as st; st.enable()

and every Deformable DETR, Grounding DINO, MM Grounding DINO, OmDet-Turbo, LW-DETR, RF-DETR,
PP-DocLayout (v2, v3, v4), RT-DETR, RT-DETRv2, D-FINE, DEIMv2, Mask2Former and OneFormer runs on it:
those of them that the installed transformers has, 4.50 or newer.
"""

from __future__ import annotations

from torch import nn

from .. import _replacing
from . import families, instances

__all__ = ["disable", "enable", "patch"]

_classes = _replacing.Switch(families.replacements)


def enable() -> list[str]:
    """Puts the operator into the classes of all families; again, it does nothing.

    It holds for every model, made before or afterwards by `from_pretrained`, `from_config` or its
    constructor, until `disable()`. Models, state dicts and pickles do not change: what is saved
    loads where this library is not installed. With `use_kernels=True` the operator stays; but a
    model that was loaded with it before keeps what the `kernels` package put there, until
    `patch(model)`.

    Returns:
        The names of what is replaced: classes' methods and attributes.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        UnsupportedVersionError: The installed version lacks one of the classes or functions, or
            calls it with other arguments. Nothing is replaced.
    """
    return _classes.enable()


def patch(model: nn.Module) -> list[str]:
    """Puts the operator into one model, until `disable()`; again, it does nothing.

    Deep copies of the model have it too. A saved or pickled model is a plain one, and loads where
    this library is not installed.

    Args:
        model: A model of one of the families, or a module that has one inside.

    Returns:
        The names of the submodules that attend with the operator.

    Raises:
        TypeError: `model` is no module.
        ValueError: Nothing in the model can be replaced, or a submodule calls a `forward` that was
            set on itself, by accelerate for example: call `enable()` before that.
        UnsupportedVersionError: As for `enable`. Nothing is replaced.
    """
    with _replacing.lock:
        return instances.patch(model)


def disable() -> None:
    """Undoes `enable` and every `patch`; again, it does nothing.

    A patched submodule whose class something else has changed meanwhile, as FSDP2 does, keeps the
    operator.
    """
    with _replacing.lock:
        instances.disable()
        _classes.disable()
