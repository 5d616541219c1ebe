"""Every compiler, every way to install, the oldest and the newest Python and PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.package.install_matrix import ways
from tests.package.install_matrix.parts import Compiler, Pair


@pytest.mark.parametrize("way", ways.WAYS)
def test_an_install_says_how_it_was_built_and_is_right(
    way: str, compiler: Compiler, pair: Pair, sdist: Path, tmp_path: Path
) -> None:
    python = pair.environment(tmp_path / "environment")
    with compiler.turn():
        place = ways.install(way, sdist, python, tmp_path, **compiler.settings)
    report = ways.report_of(python)
    assert ways.folder_in(report).is_relative_to(place)
    if not compiler.name:
        assert "native core  none: no C++ compiler (g++ or clang++) was found" in report
        return
    ways.check_native(report, compiler.description)
    ways.check_threads(report, python)
