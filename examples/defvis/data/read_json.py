"""Reads a JSON file that must hold a list or an object."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from defvis.data.values import shown

_NAMES = {list: "a list", dict: "an object"}
# How archives begin that hold JSON files.
_ARCHIVES = {b"PK\3\4": "a zip archive", b"\x1f\x8b": "compressed by gzip"}


def read_json(
    path: Path, kind: type[list[Any]] | type[dict[str, Any]], error: type[Exception]
) -> Any:
    """Returns the content of a file in UTF-8, or in UTF-16 or UTF-32, with or without a mark.

    Args:
        path: The file.
        kind: `list` or `dict`.
        error: Raised, with the path in its message, if the file cannot be read, names a field of
            an object twice, or holds another kind of value.
    """
    try:
        raw = path.read_bytes()
        for start, name in _ARCHIVES.items():
            if raw.startswith(start):
                raise ValueError(f"it is {name}, unpack it first")
        content = json.loads(
            raw.decode(json.detect_encoding(raw)), object_pairs_hook=_without_repeats
        )
    except UnicodeDecodeError as cause:
        raise error(
            f"{path}: cannot be read as JSON: byte {cause.start} ({raw[cause.start]:#04x}) is not "
            f"{cause.encoding}; save the file as UTF-8"
        ) from cause
    except json.JSONDecodeError as cause:
        began = f"; the file begins with {shown(cause.doc[:60])}" if cause.pos == 0 else ""
        raise error(f"{path}: cannot be read as JSON: {cause}{began}") from cause
    except (OSError, RecursionError, ValueError) as cause:
        raise error(f"{path}: cannot be read as JSON: {cause}") from cause
    if not isinstance(content, kind):
        got = shown(content)
        if isinstance(content, dict):
            got = "dict" + (f" with the fields {shown(list(content))}" if content else "")
        raise error(f"{path}: must hold {_NAMES[kind]}, got {got}")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {shown(twice)} appears twice in one object")
    return row
