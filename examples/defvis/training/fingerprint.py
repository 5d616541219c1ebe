"""Short texts that differ where a model or files differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from defvis.models.model import DefVIS
from defvis.training.load_trained import TrainedModel

_CHUNK, _DIGITS = 2**20, 16


def of_model(trained: TrainedModel[DefVIS]) -> str:
    """Of weights, config and categories, whatever file they were read from."""
    about = (trained.config.to_dict(), trained.category_ids, trained.category_names)
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in trained.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:_DIGITS]


def of_content(path: Path) -> str:
    """Of all bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:_DIGITS]


def of_listing(files: Iterable[Path]) -> str:
    """Of the paths and sizes of files, which takes no reading."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.resolve()}\0{file.stat().st_size}\n".encode())
    return digest.hexdigest()[:_DIGITS]
