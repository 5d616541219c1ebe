"""Imports point downwards: from benchmarks to examples to stdeform, and between folders of each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the bottom up; a file may import what is on its own level or below.
LEVELS = [
    "stdeform",
    "defvis",
    *("benchmarks.workloads", "benchmarks.measure", "benchmarks.subjects", "benchmarks.costs"),
    *("benchmarks.metrics", "benchmarks.report", "benchmarks.commands", "benchmarks.gpu"),
    "benchmarks.__main__",
    "tests",
]


def _level(module: str) -> int | None:
    return next(
        (i for i, name in enumerate(LEVELS) if f"{module}.".startswith(f"{name}.")),
        None,
    )


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ["stdeform", "examples/defvis", "benchmarks"])
def test_no_file_imports_what_is_above_it(folder: str) -> None:
    seen = 0
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("examples.")
        own = _level(name)
        if own is None:  # a package's __init__.py above all levels
            assert path.name == "__init__.py"
            continue
        for imported in _imports(path):
            level = _level(imported)
            seen += level is not None
            assert level is None or level <= own, f"{name} imports {imported}"
    assert seen > 10 or folder == "stdeform"  # its own imports are relative or few
