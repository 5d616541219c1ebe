"""Checkpoints: written atomically, read safely, the previous one kept."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint; at every moment a complete one exists.

    The file is written beside `path` and renamed onto it; what `path` held before becomes
    `<name>.previous`.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, previous(path))
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, or with a warning the previous one if it is missing or broken.

    Only tensors and plain containers are read; no code in the file can run.

    Raises:
        RuntimeError: If neither can be read.
    """
    failures = []
    for candidate in (path, previous(path)):
        try:
            state: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            failures.append(f"{candidate}: {reason}")
            continue
        if failures:
            warnings.warn(
                f"checkpoint cannot be read ({failures[0]}); using {candidate}", stacklevel=2
            )
        return state
    raise RuntimeError("no checkpoint can be read: " + "; ".join(failures))


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(path.name + ".previous")
