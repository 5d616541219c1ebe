"""A trained model read back from a checkpoint, with the numbers and classes it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from defvis.config import Config
from defvis.evaluation.predict import Predictor
from defvis.models.model import DefVIS
from defvis.training.checkpoint import CheckpointError, load_checkpoint, previous
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
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.exists() and not previous(file).exists():
        raise FileNotFoundError(f"there is no checkpoint {file}")
    saved = load_checkpoint(file)
    config = read_config(saved, file)
    try:
        model = DefVIS(config.model)
        average = saved["state"].get("average")
        model.load_state_dict(saved["model"] if average is None else average["model"])
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the model of {file} cannot be built: {reason[:300]}") from error
    categories = saved["categories"]
    return TrainedModel(
        model.eval().requires_grad_(False),
        config,
        tuple(categories["ids"]),
        tuple(categories["names"]),
    )
