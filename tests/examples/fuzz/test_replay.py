"""Replays the kept inputs of the fuzzer: the corpus, and all that once failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.fuzz import targets

_NEEDS = {"video": ("av",), "onnx": ("onnx", "onnxruntime")}


@pytest.mark.parametrize("name", targets.MODULE_OF)
def test_kept_inputs(name: str, tmp_path: Path) -> None:
    for package in _NEEDS.get(name, ()):
        pytest.importorskip(package)
    target = targets.find(name)
    kept = targets.seeds(name)
    assert kept
    for entry, data in kept.items():
        try:
            target(data, tmp_path)
        except Exception as error:
            raise AssertionError(f"{name}: {entry}") from error
