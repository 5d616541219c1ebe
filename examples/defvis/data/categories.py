"""Compares the categories of two of: a dataset, a checkpoint, a file of results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def difference(
    ids: Sequence[int], names: Sequence[str], other_ids: Sequence[int], other_names: Sequence[str]
) -> str:
    """The first class in which two lists of categories differ, in words; "" if there is none.

    Args:
        ids: The category id of each class index.
        names: The name of each class index.
        other_ids: The same of the other list.
        other_names: The same of the other list.
    """
    pairs = zip(ids, names, strict=True), zip(other_ids, other_names, strict=True)
    for label, (own, other) in enumerate(zip_longest(*pairs)):
        if own != other:
            return f"class {label} is {_words(own)} in one and {_words(other)} in the other"
    return ""


def _words(category: tuple[int, str] | None) -> str:
    if category is None:
        return "missing"
    number, name = category
    return f"{name!r} (id {number})"
