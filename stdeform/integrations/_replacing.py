"""Puts this library's functions in the place of other projects' functions and methods."""

from __future__ import annotations

import importlib.metadata
import inspect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_ABSENT = object()
lock = threading.RLock()  # held while attributes and classes are replaced


class UnsupportedVersionError(RuntimeError):
    """The installed version of a project lacks what would be replaced, or calls it otherwise."""


@dataclass(frozen=True)
class Replacement:
    """An attribute of another project, and what takes its place.

    Attributes:
        owner: The module or class.
        name: Of the attribute.
        by: What takes its place.
    """

    owner: Any
    name: str
    by: Any

    def __str__(self) -> str:
        return f"{qualified_name(self.owner)}.{self.name}"


class Switch:
    """Replacements that are made, and undone, together.

    Args:
        find: Imports the project and returns the replacements. All are found, and so checked,
            before the first is made.
    """

    def __init__(self, find: Callable[[], Iterable[Replacement]]) -> None:
        self._find = find
        self._made: list[tuple[Replacement, object]] = []  # with what was there before

    def enable(self) -> list[str]:
        """Makes the replacements, once, and returns the names of what they replace."""
        with lock:
            if not self._made:
                for each in tuple(self._find()):
                    self._made.append((each, vars(each.owner).get(each.name, _ABSENT)))
                    setattr(each.owner, each.name, each.by)
            return [str(each) for each, _ in self._made]

    def disable(self) -> None:
        """Undoes them, except where something else has taken the place meanwhile."""
        with lock:
            while self._made:
                each, before = self._made.pop()
                if vars(each.owner).get(each.name) is not each.by:
                    continue
                if before is _ABSENT:
                    delattr(each.owner, each.name)
                else:
                    setattr(each.owner, each.name, before)


def check_function(owner: Any, name: str, parameters: tuple[str, ...]) -> None:
    """Checks that a module or class has a function with these parameters.

    Raises:
        UnsupportedVersionError: The function is missing or has other parameters.
    """
    function = getattr(owner, name, None)
    if not callable(function):
        raise unsupported(owner, f"has no function {name}")
    found = tuple(inspect.signature(function).parameters)
    if found != parameters:
        raise unsupported(
            owner, f".{name} takes ({', '.join(found)}), expected ({', '.join(parameters)})"
        )


def unsupported(owner: Any, what: str) -> UnsupportedVersionError:
    """The error that the installed version of a project does not fit, and why.

    Args:
        owner: The module or class that does not fit.
        what: Continues a sentence that begins with the name of `owner`.
    """
    name = qualified_name(owner)
    project = name.partition(".")[0]
    installed = importlib.metadata.packages_distributions().get(project, ())
    found = [f"{each} {importlib.metadata.version(each)}" for each in installed]
    who = " and ".join(found) or f"{project} of unknown version"
    space = "" if what.startswith(".") else " "
    return UnsupportedVersionError(f"{who} is not supported: {name}{space}{what}")


def qualified_name(owner: Any) -> str:
    """The name of a module, or of a class with that of its module."""
    if inspect.isclass(owner):
        return f"{owner.__module__}.{owner.__qualname__}"
    return str(owner.__name__)
