"""The readers that are fuzzed, by name, and the inputs that are kept of each."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

_MODULES = {
    "json_targets": ("raw_json", "dataset", "results", "masks", "log", "config"),
    "media_targets": ("picture", "video"),
    "file_targets": ("checkpoint", "weights", "onnx", "journal"),
}
MODULE_OF = {target: module for module, targets in _MODULES.items() for target in targets}
_SEEDS = Path(__file__).with_name("seeds")


def find(name: str) -> Callable[[bytes, Path], None]:
    """A function that hands bytes to a reader, in a folder, and fails if it breaks a promise."""
    found: Callable[[bytes, Path], None] = import_module(
        f"tests.examples.fuzz.{MODULE_OF[name]}"
    ).TARGETS[name]
    return found


def seeds(name: str) -> dict[str, bytes]:
    """The kept inputs of a target; those that once failed are called found-..."""
    with zipfile.ZipFile(_SEEDS / f"{name}.zip") as file:
        return {entry: file.read(entry) for entry in file.namelist()}
