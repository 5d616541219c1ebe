"""Prints the notes of a release, `python .ci/release_notes.py TAG`, or stops where it is not ready.

The version has one place, stdeform/__init__.py; the tag, CHANGELOG.md and CITATION.cff follow it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    """Reads a file of the checkout."""
    return (ROOT / name).read_text(encoding="utf-8")


def notes_of(tag: str) -> str:
    """Returns the section of CHANGELOG.md.

    Raises:
        SystemExit: If a file says another version than the tag, or the section is missing or empty.
    """
    (version,) = re.findall(r'^__version__ = "(.+)"$', read("stdeform/__init__.py"), re.MULTILINE)
    if tag != f"v{version}":
        raise SystemExit(f"the tag must be v{version}, as stdeform/__init__.py says, got {tag}")
    title = rf"^## {re.escape(version)} - (\d{{4}}-\d\d-\d\d)\n"
    section = re.search(title + r"(.*?)(?=^## |\Z)", read("CHANGELOG.md"), re.MULTILINE | re.DOTALL)
    if not section or not section[2].strip():
        raise SystemExit(f"CHANGELOG.md must have a section, ## {version} - YEAR-MONTH-DAY")
    cited = f"version: {version}\ndate-released: {section[1]}"
    if f"\n{cited}\n" not in read("CITATION.cff"):
        raise SystemExit(f"CITATION.cff must say {cited!r}")
    return section[2].strip()


if __name__ == "__main__":
    print(notes_of(sys.argv[1]))
