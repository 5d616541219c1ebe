"""Files of `torch.save`, read without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or is none of this program; the message has the reason."""


def read_tensors(path: Path, device: torch.device | None = None) -> Any:
    """Reads what `torch.save` wrote, if it is tensors in plain containers; no code can run.

    Args:
        path: The file.
        device: Where the tensors are wanted; None is the CPU.

    Raises:
        CheckpointError: With the reason, if that fails in any way.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of what a damaged file seems to be.
            # Checkpoints of the DETR family carry the command line's Namespace, a plain record.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location=device or "cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # Its message recommends to run the code.
        raise CheckpointError(
            "UnpicklingError: it is damaged, or holds more than tensors in plain containers"
        ) from error
    except Exception as error:  # Damage may look like anything.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(reason) from error
