"""The names of setup.py, for tests of the build and for those that compile as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


def load() -> dict[str, Any]:
    """Runs setup.py, which does not set up anything, and returns its names."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    names = {"__file__": str(ROOT / "setup.py"), "__name__": "setup"}
    with mock.patch("setuptools.setup"):
        exec(compile(text, "setup.py", "exec"), names)
    return names
