"""Checkpoints, as they are written: at every moment a complete one exists."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from defvis.pretrained.checkpoint_file import previous


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


def check_finite(state: Any) -> None:
    """Raises a FloatingPointError if a tensor in nested dictionaries is not finite."""
    if isinstance(state, Mapping):
        for value in state.values():
            check_finite(value)
    elif isinstance(state, Tensor) and not state.isfinite().all():
        raise FloatingPointError("the weights are not finite")


def random_state(device: torch.device) -> dict[str, Tensor]:
    """What chance decides from here on, on the CPU and the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restores `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
