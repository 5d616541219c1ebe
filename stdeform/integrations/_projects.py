"""Other projects' modules and functions: imported, checked, and kept for exported models."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..export import is_exporting
from . import _replacing
from ._replacing import Replacement


def find_module(name: str) -> ModuleType:
    """Imports a module of a project.

    Raises:
        ModuleNotFoundError: The project, or something that it needs, is not installed.
        UnsupportedVersionError: The installed version has no such module.
    """
    project = importlib.import_module(name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise _replacing.unsupported(project, f"has no module {name}") from error


def replace(owner: Any, name: str, by: Callable[..., Any]) -> Replacement:
    """`by` in the place of a project's function with the same parameters.

    Raises:
        UnsupportedVersionError: The function is missing or has other parameters.
    """
    _replacing.check_function(owner, name, parameters(by))
    return Replacement(owner, name, unless_exporting(getattr(owner, name), by))


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters."""
    return tuple(inspect.signature(function).parameters)


def unless_exporting(own: Callable[..., Any], by: Callable[..., Any]) -> Callable[..., Any]:
    """`by`; but `own` while a model is traced or exported.

    What is recorded then leaves this process, for a place that does not have this library's
    operator: ONNX, Core ML, OpenVINO or TorchScript.
    """

    @functools.wraps(own)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (own if is_exporting() else by)(*args, **kwargs)

    return either
