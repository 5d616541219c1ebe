"""Hostile values out of bytes: the same bytes always give the same values."""

from __future__ import annotations

import copy
from typing import Any


class Choices:
    """Draws decisions from bytes; where they end, every further draw is 0."""

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, 0

    @property
    def left(self) -> bytes:
        """What has not been drawn yet."""
        return self._data[self._next :]

    def number(self, below: int) -> int:
        """A number from 0 to below - 1, of one or two bytes."""
        size = 1 if below <= 256 else 2
        drawn = int.from_bytes(self._data[self._next : self._next + size], "little")
        self._next += size
        return drawn % below

    def pick(self, values: Any) -> Any:
        """One of a list of values."""
        return values[self.number(len(values))]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 255, 2**29, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63),
    10**400, 0.0, -0.0, 0.5, 1.0, 3.0, 1e-320, 1e308, 1.7e308, -1e308, float("nan"), float("inf"),
    float("-inf"), "", " ", "0", "1", "3", "false", "a", "é", "\ud800", "\0", "中", "../x", "/",
    "a\nb", "a" * 5000, [], {}, [None], [[]], [{}], [0], [0, 0], ["a"], {"a": 1}, {"": None},
    _nested(300), [[0, 0, 1, 1]], [[0, 0, 4, 0, 4, 3, 0, 3]], [[0.5, 0.5, 3.5, 0.5, 3.5, 2.5]],
    [[1, 1, 1, 1, 1, 1]], [[-5, -5, 15, -5, 15, 15, -5, 15]], [[0, 0, 1e9, 0, 0, 1e9]],
    [[True, 0, 4, 0, 4, 3]], [[float("nan"), 0, 4, 0, 4, 3]], [0, 0, 4, 0, 4, 3],
    *({"size": [6, 8], "counts": counts} for counts in (
        [0, 6, 42], [48], [], "06Z1", "`1", "", [0.0, 48], [0, 0, 0, 0, 20, 8, 0, 20], "0" * 3000,
    )),
    {"size": [6.0, 8.0], "counts": [0, 48]}, {"size": [8, 6], "counts": [48]},
    {"size": None, "counts": None},
]  # fmt: skip


def mutated(value: Any, choices: Choices, values: list[Any] = VALUES) -> Any:
    """A copy of a tree of lists and dictionaries with up to seven places changed."""
    root = [copy.deepcopy(value)]
    for _ in range(1 + choices.number(7)):
        _change(root, choices, values)
    return root[0]


def _change(root: list[Any], choices: Choices, values: list[Any]) -> None:
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], (list, dict)) and holder[key] and choices.number(6):
        holder = holder[key]
        key = choices.pick(list(holder) if isinstance(holder, dict) else range(len(holder)))
    action = choices.number(8)
    if action < 4:
        holder[key] = copy.deepcopy(choices.pick(values))
    elif action == 4 and holder is not root:
        del holder[key]
    elif action == 5 and isinstance(holder[key], list):
        holder[key] += copy.deepcopy(holder[key])
    elif action == 5 and isinstance(holder[key], str):
        place = choices.number(len(holder[key]) + 1)
        holder[key] = holder[key][:place] + chr(choices.number(128)) + holder[key][place + 1 :]
    elif action == 6 and isinstance(holder[key], dict):
        holder[key][choices.pick(["id", "name", "counts", "size", "x"])] = choices.pick(values)
    elif action == 6 and type(holder[key]) is int:
        holder[key] += choices.number(17) - 8
    elif action == 7 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(choices.pick(values)))
