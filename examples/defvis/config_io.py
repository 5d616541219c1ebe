"""Checks a tree of dataclasses, reads and writes it as JSON, and changes single fields."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from defvis.nearest import nearest

T = TypeVar("T", bound="Settings")


@dataclass(frozen=True)
class Range:
    """Which numbers a field may hold, or each entry of a list.

    Attributes:
        least: Smallest.
        most: Largest.
        above: A limit that is not allowed itself.
        below: The same at the upper end.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        limits = {
            "at least": self.least, "above": self.above, "at most": self.most, "below": self.below
        }  # fmt: skip
        return " and ".join(
            f"{word} {int(n) if n == int(n) else n}"
            for word, n in limits.items()
            if math.isfinite(n)
        )


# For every whole number that has no range of its own: what products of several still fit into.
_WHOLE = Range(0, 2**31 - 1)


@dataclass(frozen=True)
class Settings:
    """Base of the dataclasses: refuses values of another type or out of range, and other words.

    What two fields must agree on is not checked here: they are changed one after the other.

    Attributes:
        _path: What stands before the names of the fields in the whole tree.
        _ranges: Of the numbers, by field.
    """

    _path: ClassVar[str] = ""
    _ranges: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for name in (field.name for field in dataclasses.fields(self)):
            _check(f"{self._path}{name}", getattr(self, name), kinds[name], self._ranges.get(name))

    def __str__(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Returns the tree as plain dictionaries, lists, numbers and strings."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
        """Rebuilds a tree from `to_dict`; a name or value that does not fit is a ValueError."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{path} must be an object with fields, got {values!r}")
        kinds = get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"{path} has no field {unknown[0]!r}; it has {sorted(names)}")
        arguments: dict[str, Any] = {}
        for name, value in values.items():
            kind = kinds[name]
            if isinstance(kind, type) and issubclass(kind, Settings):
                arguments[name] = kind.from_dict(value, f"{path}.{name}")
            else:
                arguments[name] = _typed(value, kind)
        return cls(**arguments)


def _typed(value: Any, kind: Any) -> Any:
    """A value from JSON, which has lists for tuples and may write 1.0 as 1."""
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_typed(entry, get_args(kind)[0]) for entry in value)
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    return value


def _check(name: str, value: Any, kind: Any, allowed: Range | None) -> None:
    """Raises a ValueError that names the field, unless the value fits."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {list(get_args(kind))}, got {value!r}")
        return
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a list, got {value!r}")
        for entry in value:
            _check(f"each entry of {name}", entry, get_args(kind)[0], allowed)
        return
    fits = type(value) is kind or (kind is float and type(value) is int)
    fits = fits and (kind is not float or abs(value) <= sys.float_info.max)
    if isinstance(kind, type) and issubclass(kind, Settings):
        fits = isinstance(value, kind)
    if not fits:
        raise ValueError(
            f"{name} must be {_WORDS.get(kind, 'a group of fields')}, got {value!r}"[:300]
        )
    if kind is int and allowed is None:
        allowed = _WHOLE
    if allowed is not None and value not in allowed:
        raise ValueError(f"{name} must be {allowed}, got {value!r}"[:300])


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def flatten(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of `Settings.to_dict`, by path: {"optim.learning_rate": 1e-3, ...}."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        below = flatten(value, f"{path}{name}.") if isinstance(value, Mapping) else None
        leaves.update({f"{path}{name}": value} if below is None else below)
    return leaves


def override(config: T, assignment: str) -> T:
    """Returns a config with one number changed.

    Args:
        config: The config to start from.
        assignment: "path=value" with a JSON value, for example "optim.learning_rate=5e-4" or
            "model.initial_box=[0.3, 0.3]".

    Raises:
        ValueError: If the path does not exist, which names the nearest ones, or the field cannot
            hold the value.
    """
    path, equals, text = assignment.partition("=")
    values = branch = config.to_dict()
    leaves = flatten(values)
    if path not in leaves:
        raise ValueError(f"there is no field {path!r}{_advice(leaves, path)}")
    if not equals:
        raise ValueError(
            f"a setting must be FIELD=VALUE, got {assignment!r} alone; now it is "
            f"{path}={json.dumps(leaves[path])}"
        )
    old = leaves[path]
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    if isinstance(old, str) and not isinstance(new, str):
        new = text
    *parents, name = path.split(".")
    for parent in parents:
        branch = branch[parent]
    branch[name] = new
    return type(config).from_dict(values)


def _advice(paths: Iterable[str], path: str) -> str:
    """What may be meant by a path that does not exist."""
    inside = [each for each in paths if each.startswith(f"{path}.")]
    if inside:
        return f": it is a group, with {inside[0]} and others"
    fields = nearest(paths, path)
    if not fields:
        return "; train_defvis.py --print-config lists all"
    return f"; the nearest {'is' if len(fields) == 1 else 'are'} {', '.join(fields)}"
