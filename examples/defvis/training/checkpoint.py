"""Checkpoints: written atomically, read safely, the previous one kept."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from defvis.pretrained.tensor_file import CheckpointError, read_tensors


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint; at every moment a complete one exists.

    The file is written under another name and renamed to `path`; the old one becomes
    `<name>.previous`.

    Raises:
        OSError: If it cannot be written, for example because the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            _write(state, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            kept = "; the one before it is kept" * path.exists()
            raise OSError(f"cannot write {path}: {reason}{kept}") from error
        raise
    if path.exists():
        os.replace(path, previous(path))
    os.replace(partial, path)


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, which hides the reason why a file cannot be written behind its own error."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        raise


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
            _check_sums(candidate)
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


def _check_sums(path: Path) -> None:
    """Compares the file's checksums, which torch writes but does not read."""
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
