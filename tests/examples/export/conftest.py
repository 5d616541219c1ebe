"""A tiny run, exported once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.support import program


@pytest.fixture(scope="session")
def source(digits: Path) -> Path:
    """The frames of a validation video."""
    return digits / "val/JPEGImages/00001"


@pytest.fixture(scope="session")
def onnx_file(tiny_run: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What export_defvis.py writes of `tiny_run`."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    file = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    program("export_defvis")(["--run", str(tiny_run), "--source", str(source), "--out", str(file)])
    return file
