"""The documentation: its examples run, its links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import stdeform

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


def _blocks() -> list[Any]:
    """Every Python example of the pages about the operators."""
    text = (ROOT / "docs" / "operators.md").read_text()
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return [
        pytest.param(block, id=part.splitlines()[0])
        for part in parts
        for block in re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    ]


@pytest.mark.parametrize("block", _blocks())
@pytest.mark.usefixtures("needs_native")
def test_examples(block: str) -> None:
    names: dict[str, Any] = {}
    exec(block, names)
    if "[B, S, L, 3]" in block:
        assert names["grid"].shape == (2, 1800, 2, 3)
        assert names["level_starts"](names["shapes"]) == [0, 1440]
    else:
        assert names["out"].isfinite().all()


@pytest.mark.parametrize("module", ["functional", "modules", "shapes"])
@pytest.mark.usefixtures("needs_native")
def test_docstrings(module: str) -> None:
    names = {"torch": importlib.import_module("torch"), **vars(stdeform)}
    result = doctest.testmod(importlib.import_module(f"stdeform.{module}"), extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_operators_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "operators.md").read_text()
    missing = [name for name in stdeform.__all__ if name not in text and name != "__version__"]
    assert not missing
