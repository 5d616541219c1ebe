"""What the programs read from the command line, and say there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

# The largest number of anything: what products of several still fit into.
_MOST = 2**31 - 1


def whole_number(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not below `least`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= _MOST:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, got {text}"
                + f"; at most {_MOST}" * (number > _MOST)
            )
        return number

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Reads a number from `least` to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be {least:g} to {most:g}, got {text}")
        return value

    return read


def query(text: str) -> tuple[str, list[int]]:
    """Reads decoder:SLOT:FRAME or encoder:X:Y:FRAME."""
    kind, *words = text.split(":")
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(numbers) != len(words) or (kind, len(words)) not in (("decoder", 2), ("encoder", 3)):
        raise argparse.ArgumentTypeError(
            f"must be decoder:SLOT:FRAME or encoder:X:Y:FRAME in whole numbers, got {text!r}"
        )
    return kind, numbers


def say(text: str) -> None:
    """Prints a text with names at once, whatever characters the terminal has."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
