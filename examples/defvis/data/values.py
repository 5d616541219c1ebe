"""Single values of JSON files, checked by type."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """A value as it is written, cut to what fits into a message."""
    return _SHORT.repr(value)


def integer(row: Mapping[str, Any], name: str, place: str, error: type[Exception]) -> int:
    """A whole number: 7, or 7.0 as some tables are exported.

    Args:
        row: Object of the file.
        name: Its field.
        place: Where the object lies, for the message.
        error: Raised if the field is missing or holds something else.
    """
    number = row.get(name)
    if type(number) is int:
        return number
    if type(number) is float and number.is_integer():
        return int(number)
    if name not in row:
        raise error(f"{place}: {name} is missing")
    raise error(f"{place}: {name} must be an integer, got {shown(number)}")
