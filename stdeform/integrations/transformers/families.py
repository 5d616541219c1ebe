"""Which classes of which models attend deformably, and what of them is replaced."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from .. import _projects, _replacing
from .._replacing import Replacement
from . import attention

_FUNCTION = "multi_scale_deformable_attention"
_FUNCTION_V2 = "multi_scale_deformable_attention_v2"
_CORE = "ms_deformable_attn_core"  # the attribute that holds the function in the last two

# The class that attends, and the function of its module that it calls; without one, the class
# itself is the operator.
_FAMILIES: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(
        (
            "deformable_detr",
            "grounding_dino",
            "lw_detr",
            "mm_grounding_dino",
            "omdet_turbo",
            "pp_doclayout_v2",
            "pp_doclayout_v3",
            "pp_doclayout_v4",
            "rf_detr",
            "rt_detr",
        ),
        ("MultiScaleDeformableAttention", None),
    ),
    "mask2former": ("Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention", _FUNCTION),
    "oneformer": ("OneFormerPixelDecoderEncoderMultiscaleDeformableAttention", _FUNCTION),
    "rt_detr_v2": ("RTDetrV2MultiscaleDeformableAttention", _FUNCTION_V2),
    "d_fine": ("DFineMultiscaleDeformableAttention", _FUNCTION_V2),
    "deimv2": ("Deimv2MultiscaleDeformableAttention", _FUNCTION_V2),
}


def replacements() -> Iterator[Replacement]:
    """What is replaced in all families that the installed version has.

    Raises:
        UnsupportedVersionError: A family lacks the class or function, or calls it otherwise.
    """
    for family in _FAMILIES:
        if importlib.util.find_spec(f"transformers.models.{family}") is not None:
            yield from of_module(f"transformers.models.{family}.modeling_{family}")


def of_module(name: str) -> Iterator[Replacement]:
    """What is replaced in a module; nothing where it is not that of a family.

    Raises:
        UnsupportedVersionError: The module lacks the class or function, or calls it otherwise.
    """
    family = name.rpartition(".modeling_")[2]
    if family not in _FAMILIES or name != f"transformers.models.{family}.modeling_{family}":
        return
    module = importlib.import_module(name)
    class_name, function_name = _FAMILIES[family]
    owner = getattr(module, class_name, None)
    if not inspect.isclass(owner):
        raise _replacing.unsupported(module, f"has no class {class_name}, as of 4.50 and newer")
    if function_name is None:
        yield _projects.replace(owner, "forward", attention.forward)
        if hasattr(owner, "kernel_layer_name"):  # by which `use_kernels=True` finds the class
            yield Replacement(owner, "kernel_layer_name", _Hidden())
        return
    by = _projects.replace(module, function_name, getattr(attention, function_name)).by
    forward = getattr(owner, "forward", None)
    if _names(forward, _CORE):
        yield Replacement(owner, _CORE, _constant(_CORE, by))
    elif _names(forward, function_name):
        yield Replacement(owner, "forward", _with_global(forward, function_name, by))
    else:
        raise _replacing.unsupported(owner, f".forward does not call {function_name}")


class _Hidden:
    """An attribute that is not there."""

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError


def _names(function: Any, name: str) -> bool:
    """Whether a function's own code has a global or attribute of this name."""
    return isinstance(function, FunctionType) and name in function.__code__.co_names


def _constant(name: str, by: Any) -> property:
    """An attribute that reads as `by`; what instances keep under its name stays, and pickles."""
    return property(lambda self: by, lambda self, value: vars(self).update({name: value}))


def _with_global(function: Any, name: str, by: Any) -> Any:
    """A copy of a function for which one global is another; its module does not change."""
    scope = {**function.__globals__, name: by}
    scope.pop("__name__", None)  # by it Dynamo would find the module, and read its globals
    copy = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)
