"""The documentation: its links lead somewhere, its examples run, nothing public is left out."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import stdeform

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def pages() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pages()
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pages()
@pytest.mark.usefixtures("needs_native")
def test_python_runs(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", ["README.md", "docs/operators.md"])
def test_users_find_examples(page: str) -> None:
    assert "```python" in (ROOT / page).read_text()


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
