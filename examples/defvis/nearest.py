"""Which fields of a config a misspelt or shortened name may mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

# How alike, from 0 to 1, a name must be to a field's; how much less than the likeliest; how many
# are named.
_ALIKE, _AS_GOOD, _NAMED = 0.7, 0.25, 3


def nearest(paths: Iterable[str], name: str) -> list[str]:
    """The fields that a name may mean, the likeliest first; those it is the name of, if any.

    Args:
        paths: Of all fields, for example "optim.learning_rate".
        name: A path, a part of it or something like it, also as an option: "optim.lr", "flipp",
            "--learning-rate".
    """
    plain = {path: _plain(path) for path in paths}
    wanted = _plain(name)
    meant = [path for path in plain if plain[path] == wanted] or [
        path for path in plain if path.rpartition(".")[2] == wanted
    ]
    if meant:
        return meant
    likeness = {path: _likeness(path, name) for path in plain}
    best = max(likeness.values(), default=0.0)
    found = [path for path in plain if likeness[path] > max(0.0, best - _AS_GOOD)]
    return sorted(found, key=lambda path: -likeness[path])[:_NAMED]


def _likeness(path: str, name: str) -> float:
    """How alike a field and a name are: by letters, words or initials, then by group; or 0."""
    group, _, field = path.rpartition(".")
    wanted, own_group = _plain(name), _plain(group)
    named_group, _, last = (_plain(part) for part in name.rpartition("."))
    if group and wanted.startswith(f"{own_group}_"):
        named_group, last = own_group, wanted[len(own_group) + 1 :]
    words, own_words = set(last.split("_")), set(field.split("_"))
    alike = _ratio(last, field)
    if any(len(word) > 3 and word in field for word in words):
        alike = max(alike, 0.7)
    if words <= own_words or last == "".join(word[0] for word in field.split("_")):
        alike = max(alike, 0.9)
    return 0.0 if alike < _ALIKE else alike + 0.1 * _ratio(named_group, own_group)


def _ratio(first: str, second: str) -> float:
    return SequenceMatcher(None, first, second).ratio()


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
