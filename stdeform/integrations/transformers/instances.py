"""The operator in single models: submodules that attend get a subclass of their class."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from types import MethodType
from typing import Any

from torch import nn

from .._replacing import Replacement
from . import families

_patched: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def patch(model: nn.Module) -> list[str]:
    """Puts the operator into a model; returns the names of the submodules that have it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    subclasses: dict[str, Any] = {
        name: None if module in _patched else _subclass(module.__class__)
        for name, module in model.named_modules()
        if module in _patched or _replaced(type(module))
    }
    if not subclasses:
        raise ValueError(
            "model must have deformable attention of one of the families of transformers that "
            f"`enable` names, found none in {type(model).__name__}"
        )
    new = {model.get_submodule(name): each for name, each in subclasses.items() if each}
    for module, subclass in new.items():
        if "forward" in vars(subclass):
            _check_forward(module)
    for module, subclass in new.items():
        if "forward" in vars(subclass):
            vars(module).pop("forward", None)
        module.__class__ = subclass
        _patched.add(module)
    return list(subclasses)


def disable() -> None:
    """Gives the submodules of all patched models their classes back."""
    while _patched:
        module = _patched.pop()
        plain = type(module).__mro__[1]
        if type(module) is _subclass(plain):
            module.__class__ = plain


def _replaced(plain: Any) -> tuple[Replacement, ...]:
    """What is replaced in a class: nothing that it overrides."""
    return tuple(
        each
        for owner in plain.__mro__
        for each in families.of_module(owner.__module__)
        if each.owner is owner and _static(plain, each.name) is _static(owner, each.name)
    )


def _static(owner: type, name: str) -> object:
    return inspect.getattr_static(owner, name, None)


def _check_forward(module: nn.Module) -> None:
    """Refuses a module whose class would not be asked, since it has a `forward` of its own."""
    own = vars(module).get("forward")
    # A method of the module itself is what the kernels package sets.
    if own is not None and not (isinstance(own, MethodType) and own.__self__ is module):
        raise ValueError(
            f"model must not have had the forward of its {type(module).__name__} replaced, got "
            f"{own!r}: call `enable` before that"
        )


@functools.cache
def _subclass(plain: Any) -> Any:
    """A class with the operator; its instances are saved as those of the plain class."""

    class Attention(plain):  # type: ignore[misc]
        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            # By protocol 0, because newer ones insist on the object's own class.
            make, arguments, *state = super().__reduce_ex__(0)
            return make, tuple(plain if each is Attention else each for each in arguments), *state

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            copied = memo[id(self)] = Attention.__new__(Attention)
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
            _patched.add(copied)
            return copied

    for each in _replaced(plain):
        setattr(Attention, each.name, each.by)
    return functools.update_wrapper(Attention, plain, updated=())
