"""Writes a trained model as an ONNX file that contains all that is needed to use it on videos."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from defvis.export.network import INPUTS, OUTPUTS, Network, to_metadata
from defvis.export.quiet import quiet
from defvis.models.model import DefVIS
from defvis.training.load_trained import TrainedModel
from stdeform import export_form

METADATA = "defvis"
# The first with GridSample over volumes is 20; without it, what PyTorch translates to.
_OPSET, _OPSET_OF_VOLUMES = 18, 20


def write_onnx(trained: TrainedModel[DefVIS], path: Path, form: str | None) -> int:
    """Writes the file; its inputs and outputs are those of `Network`, at any size.

    Args:
        trained: The model.
        path: The file.
        form: Of the attention, see `stdeform.export_form`; None leaves it to the library.

    Returns:
        The number of nodes.
    """
    network = Network(trained)
    with export_form(form) if form else contextlib.nullcontext(), quiet():
        program = torch.onnx.export(
            network,
            network.example(),
            dynamo=True,
            dynamic_shapes=network.free_axes(),
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=_OPSET_OF_VOLUMES if form == "grid_sample" else _OPSET,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[METADATA] = to_metadata(trained)
    program.save(path)
    return sum(1 for _ in program.model.graph)
