"""Checks a tree of dataclasses, reads and writes it as JSON, and changes single fields."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of the dataclasses: refuses numbers below a limit and words that are not a choice."""

    _at_least: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        for name, least in self._at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"{name} must be one of {list(get_args(kind))}, got {value!r}")

    def __str__(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Returns the tree as plain dictionaries, lists, numbers and strings."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
        """Rebuilds a tree from `to_dict`; a name that does not exist is a ValueError."""
        kinds = get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"{path} has no field {unknown[0]!r}; it has {sorted(names)}")
        arguments: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                value = kinds[name].from_dict(value, f"{path}.{name}")
            arguments[name] = tuple(value) if isinstance(value, list) else value
        return cls(**arguments)


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
        ValueError: If the path does not exist, or the value is not JSON of the field's type.
    """
    path, equals, text = assignment.partition("=")
    values = branch = config.to_dict()
    leaves = flatten(values)
    if not equals or path not in leaves:
        raise ValueError(f"a setting must be a field of the config = a value, got {assignment!r}")
    old = leaves[path]
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    if isinstance(old, float) and type(new) is int:
        new = float(new)
    if type(new) is not type(old):
        raise ValueError(f"{path} must be a {type(old).__name__}, got {text!r}")
    *parents, name = path.split(".")
    for parent in parents:
        branch = branch[parent]
    branch[name] = new
    return type(config).from_dict(values)
