"""A trained model read back from a checkpoint, with the numbers and classes it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from defvis.config import Config
from defvis.evaluation.predict import Predictor
from defvis.models.model import DefVIS
from defvis.pretrained.checkpoint_file import (
    checkpoint_of,
    load_checkpoint,
    previous,
    validated_weights,
)
from defvis.pretrained.tensor_file import CheckpointError
from defvis.training.resume import read_config

M = TypeVar("M", bound=Predictor)


@dataclass(frozen=True)
class TrainedModel(Generic[M]):
    """The parts of a checkpoint, or of an exported file, that prediction needs.

    Attributes:
        model: Of a checkpoint: in eval mode, on the CPU; the averaged weights where the run kept
            them.
        config: All numbers of the run.
        category_ids: The dataset's category id of each class index.
        category_names: The name of each class index.
    """

    model: M
    config: Config
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]


def load_trained(path: Path) -> TrainedModel[DefVIS]:
    """Reads a model.

    Args:
        path: A checkpoint, or the folder of a run.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        CheckpointError: If it cannot be read, is none of this program, or does not fit it.
    """
    file = checkpoint_of(path)
    if not file.exists() and not previous(file).exists():
        raise FileNotFoundError(f"there is no checkpoint {file}")
    try:
        saved = load_checkpoint(file)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; if the file holds the weights of a model, start a run from them: "
            "train_defvis --weights"
        ) from error
    config = read_config(saved, file)
    try:
        config.check()
        model = _build(config, validated_weights(saved))
    except Exception as error:  # Parts that are no weights, sizes that do not fit into memory.
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"the model of {file} cannot be built: {reason}") from error
    categories = saved["categories"]
    return TrainedModel(
        model.eval().requires_grad_(False),
        config,
        tuple(categories["ids"]),
        tuple(categories["names"]),
    )


def _build(config: Config, weights: Mapping[str, Tensor]) -> DefVIS:
    """The model with its weights; a ValueError names what does not fit."""
    if not config.model.backbone.name:  # Else its weights would be loaded twice.
        with torch.device("meta"):  # Sizes cost nothing here, whatever the config says.
            _compare(DefVIS(config.model).state_dict(), weights)
    model = DefVIS(config.model)
    _compare(model.state_dict(), weights)
    model.load_state_dict(weights)
    return model


def _compare(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name in own.keys() | weights.keys():
        if name not in own or name not in weights:
            where = "config" if name not in own else "file"
            raise ValueError(f"the {where} has no {name}")
        have, want = weights[name], own[name]
        if have.shape != want.shape:
            raise ValueError(f"{name} has shape {list(have.shape)}, not {list(want.shape)}")
        if have.is_floating_point() != want.is_floating_point() or have.is_complex():
            raise ValueError(f"{name} has dtype {have.dtype}, not {want.dtype}")
        if not have.isfinite().all():
            raise ValueError(f"{name} is not finite")
