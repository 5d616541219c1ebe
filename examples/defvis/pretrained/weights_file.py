"""A file of weights, read: its tensors, whose they are, and what else it says about the model."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from defvis.config import Config
from defvis.pretrained.checkpoint_file import (
    check_sums,
    checkpoint_of,
    load_checkpoint,
    previous,
    validated_weights,
)
from defvis.pretrained.conversion import recognise
from defvis.pretrained.tensor_file import CheckpointError, read_tensors

_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


@dataclass(frozen=True)
class WeightsFile:
    """Content of a file of weights.

    Attributes:
        path: The file.
        source: Result of `recognise`.
        entries: Tensors by name, without the prefixes of wrappers. Of a run, those that it
            validates with.
        config: Of the run that wrote it, None if it is no checkpoint of this version.
        stage: The stage of the run that was saved, "backbone" or "joint"; "" if there is none.
        classes: Ids and names of the run's classes, None if they are not known.
        num_heads: Attention heads, where the file has its program's arguments; else 0.
    """

    path: Path
    source: str
    entries: dict[str, Tensor]
    config: Config | None = None
    stage: str = ""
    classes: tuple[list[int], list[str]] | None = None
    num_heads: int = 0


def read_weights(path: Path) -> WeightsFile:
    """Reads a file of weights; no code in it can run.

    Args:
        path: The folder of a run, a checkpoint, or a state dict, alone or under "model" or
            "state_dict", from `torch.save` or as safetensors. Where a run's checkpoint is missing
            or broken, the one before it is read, with a warning.

    Raises:
        CheckpointError: If it is missing or broken, needs more than tensors and plain containers to
            be read, or is a folder without a checkpoint.
    """
    file = checkpoint_of(path)
    if path.is_dir() and not file.exists() and not previous(file).exists():
        raise CheckpointError(_no_checkpoint(path))
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else _content(file)
    except (OSError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"weights {path} cannot be read: {error}") from error
    state = content
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise CheckpointError(f"weights {path} must hold a state dict, got {type(state).__name__}")
    config, stage = None, ""
    if _is_checkpoint(content):
        state = validated_weights(content)
        config, stage = _config(content), str(content.get("stage"))
    entries = {
        _bare(str(name)): value for name, value in state.items() if isinstance(value, Tensor)
    }
    arguments = content.get("args")
    heads = getattr(arguments, "nheads", 0)
    return WeightsFile(
        file,
        recognise(entries),
        entries,
        config,
        stage,
        _classes(content),
        heads if type(heads) is int and heads > 0 else 0,
    )


def _content(file: Path) -> Any:
    if previous(file).exists():
        return load_checkpoint(file)
    if zipfile.is_zipfile(file):  # Files of torch before 1.6 are none.
        check_sums(file)
    return read_tensors(file)


def _no_checkpoint(folder: Path) -> str:
    """Why a folder cannot be read, and what can be done."""
    if (folder / "config.json").exists() and any(
        (folder / name).exists() for name in _HUGGING_FACE
    ):
        return (
            f"weights {folder} is a folder of Hugging Face with a model; take it as the backbone "
            f"with --set model.backbone.name={folder}"
        )
    return (
        f"weights {folder} is a folder without checkpoint.pt; name the folder of a run, a "
        "checkpoint or a state dict"
    )


def _is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether a run of this program wrote it, of any version."""
    if not all(isinstance(content.get(part), dict) for part in ("config", "model", "state")):
        return False
    average = content["state"].get("average")
    return average is None or (isinstance(average, dict) and isinstance(average.get("model"), dict))


def _config(content: Mapping[str, Any]) -> Config | None:
    """The config of a checkpoint, if it is of this version."""
    try:
        return Config.from_dict(content["config"])
    except ValueError:
        return None


def _classes(content: Mapping[str, Any]) -> tuple[list[int], list[str]] | None:
    found = content.get("categories")
    ids, names = (found.get("ids"), found.get("names")) if isinstance(found, dict) else (None, None)
    if not isinstance(ids, list) or not isinstance(names, list) or len(ids) != len(names):
        return None
    return ids, names


def _bare(name: str) -> str:
    """A name without what wrappers put before it."""
    for prefix in ("module.", "vistr.", "detr."):
        name = name.removeprefix(prefix)
    return name
