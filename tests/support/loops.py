"""Loops of machine code, by the branches that go back."""

from __future__ import annotations

from collections.abc import Sequence


def innermost(jumps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The loops that hold no other loop.

    Args:
        jumps: Target and address of every branch that goes back.

    Returns:
        First and last address of each.
    """
    return [
        (first, last)
        for first, last in jumps
        if not any((f, e) != (first, last) and first <= f and e <= last for f, e in jumps)
    ]
