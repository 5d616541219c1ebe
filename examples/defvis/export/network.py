"""The part of a trained model that is exported: frames to classes, boxes and masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from defvis.config import Config
from defvis.data.resize_crop import Size
from defvis.models.model import DefVIS
from defvis.pretrained.tensor_file import CheckpointError
from defvis.training.load_trained import TrainedModel
from defvis.training.resume import read_description

INPUTS = ("frames", "padding_mask")
OUTPUTS = ("probabilities", "boxes", "mask_logits")
# Of the clips with which an export is recorded; any other size may follow. Above 1, because
# torch.export takes a size of 1 for one that never changes.
_BATCH, _SIZE = 2, (64, 96)


class Network(nn.Module):
    """`DefVIS.predict` as a module.

    Where the config computes masks in chunks to save memory, this computes all at once: the number
    of chunks would depend on the batch.
    """

    def __init__(self, trained: TrainedModel[DefVIS]) -> None:
        super().__init__()
        self.model = DefVIS(replace(trained.model.config, mask_chunk=0))
        self.model.load_state_dict(trained.model.state_dict())
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DefVIS.predict`; a mask without True gives what None gives there."""
        return self.model.predict(frames, padding_mask)

    def example(self, size: Size = _SIZE) -> tuple[Tensor, Tensor]:
        """Inputs to record an export with: zeros, of a height and width."""
        clips = _BATCH, max(2, self.model.config.num_frames)
        return torch.zeros(*clips, 3, *size), torch.zeros(*clips, *size, dtype=torch.bool)

    def free_axes(self) -> tuple[dict[int, str], dict[int, str]]:
        """The free axes of both inputs, by name: batch, frames, height and width.

        Attention "frames" has weights for single frames; their number is then fixed.
        """
        config = self.model.config
        any_length = "frames" not in (config.encoder_attention, config.decoder_attention)
        time = {1: "time"} if any_length else {}
        return (
            {0: "batch", **time, 3: "height", 4: "width"},
            {0: "batch", **time, 2: "height", 3: "width"},
        )


def to_metadata(trained: TrainedModel[DefVIS]) -> str:
    """What a file must say besides its graph to be used on videos, as JSON."""
    return json.dumps(
        {
            "config": trained.config.to_dict(),
            "category_ids": trained.category_ids,
            "category_names": trained.category_names,
        }
    )


def from_metadata(text: str, path: Path) -> tuple[Config, tuple[int, ...], tuple[str, ...]]:
    """Config, category ids and category names from `to_metadata`.

    Args:
        text: Its result.
        path: The file, for the message.

    Raises:
        CheckpointError: If it is none of this version.
    """
    try:
        values = json.loads(text)
        ids, names = values["category_ids"], values["category_names"]
        config = values["config"]
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} was not written by export_defvis.py") from error
    return (read_description(config, {"ids": ids, "names": names}, path), tuple(ids), tuple(names))
