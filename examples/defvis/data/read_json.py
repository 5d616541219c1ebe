"""Reads a JSON file that must hold a list or an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_NAMES = {list: "a list", dict: "an object"}


def read_json(
    path: Path, kind: type[list[Any]] | type[dict[str, Any]], error: type[Exception]
) -> Any:
    """Returns the content of a file.

    Args:
        path: The file.
        kind: `list` or `dict`.
        error: Raised, with the path in its message, if the file cannot be read or holds another
            kind of value.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as cause:
        raise error(f"{path}: cannot be read as JSON: {cause}") from cause
    if not isinstance(content, kind):
        raise error(f"{path}: must hold {_NAMES[kind]}, got {type(content).__name__}")
    return content
