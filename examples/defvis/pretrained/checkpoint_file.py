"""Checkpoints of training runs, as they are read: checksums compared, the previous one kept."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from defvis.pretrained.tensor_file import CheckpointError, read_tensors


def load_checkpoint(path: Path, set_aside: bool = False) -> dict[str, Any]:
    """Reads a checkpoint, or with a warning the previous one if it is missing or broken.

    Only tensors and plain containers are read; no code in the file can run.

    Args:
        path: What `save_checkpoint` wrote.
        set_aside: Renames a broken newest one to `<name>.broken`, so that the next checkpoint
            does not push it into the place of the good previous one.

    Raises:
        CheckpointError: If neither can be read.
    """
    failures = []
    candidates = [each for each in (path, previous(path)) if each == path or each.exists()]
    for candidate in candidates:
        try:
            check_sums(candidate)
            state = read_tensors(candidate)
            if not isinstance(state, dict):
                raise CheckpointError(f"it holds a {type(state).__name__}, not a dictionary")
        except CheckpointError as error:
            failures.append(f"{candidate}: {error}")
            continue
        if failures:
            warnings.warn(
                f"checkpoint cannot be read ({failures[0]}); using {candidate}", stacklevel=2
            )
            if set_aside and path.exists():
                os.replace(path, path.with_name(path.name + ".broken"))
        return state
    raise CheckpointError("no checkpoint can be read: " + "; ".join(failures))


def check_sums(path: Path) -> None:
    """Compares a zip file's checksums, which torch writes but does not read.

    Raises:
        CheckpointError: If one is wrong, or the file is no zip file.
    """
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except Exception as error:  # Damage may look like anything.
        raise CheckpointError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    if broken is not None:
        raise CheckpointError(f"wrong checksum of {broken}")


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(path.name + ".previous")


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that is meant by a path: the file itself, or that of a run's folder."""
    return path / "checkpoint.pt" if path.is_dir() else path


def validated_weights(saved: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """What the run validates with: the averaged weights, or the weights where it keeps no average.

    Args:
        saved: Content of a checkpoint; its "model" and "state" are dictionaries.
    """
    average = saved["state"].get("average")
    weights: Mapping[str, Tensor] = saved["model"] if average is None else average["model"]
    return weights
