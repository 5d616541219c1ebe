"""A file of `to_onnx` in ONNX Runtime, used as `DefVIS` is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defvis.config import ModelConfig
from defvis.export.network import INPUTS, OUTPUTS, from_metadata
from defvis.export.to_onnx import METADATA
from defvis.training.load_trained import TrainedModel


class OnnxModel:
    """Predicts on the CPU, in as many threads as PyTorch has now.

    Attributes:
        config: Parts and sizes of the network.
        device: The CPU.
        num_frames: Frames that a clip must have; None if any number will do.
    """

    device = torch.device("cpu")

    def __init__(self, session: Any, config: ModelConfig) -> None:
        self.config = config
        self._session = session
        frames: int | str = session.get_inputs()[0].shape[1]
        self.num_frames = None if isinstance(frames, str) else frames

    @property
    def any_length(self) -> bool:
        """Whether clips may have any number of frames."""
        return self.num_frames is None

    def predict(self, frames: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `DefVIS.predict`.

        Raises:
            ValueError: If the file is for clips of another number of frames.
        """
        if padding_mask is None:
            padding_mask = torch.zeros(frames.shape[:2] + frames.shape[3:], dtype=torch.bool)
        if self.num_frames not in (None, frames.shape[1]):
            raise ValueError(
                f"this model takes clips of {self.num_frames} frames, got {frames.shape[1]}"
            )
        inputs = zip(INPUTS, (frames.numpy(), padding_mask.numpy()), strict=True)
        probabilities, boxes, masks = map(
            torch.from_numpy, self._session.run(OUTPUTS, dict(inputs))
        )
        return probabilities, boxes, masks


def load_onnx(path: Path) -> TrainedModel[OnnxModel]:
    """Opens a file of `export_defvis.py`.

    Raises:
        FileNotFoundError: If it does not exist.
        CheckpointError: If it is of another version.
        ValueError: If it is no such file, or ONNX Runtime is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError(f"{path}: ONNX files need ONNX Runtime: pip install onnxruntime")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its errors have no base class of their own.
        reason = str(error).splitlines()[0]
        raise ValueError(f"ONNX Runtime cannot read {path}: {reason}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    if METADATA not in metadata:
        raise ValueError(f"{path} was not written by export_defvis.py")
    config, ids, names = from_metadata(metadata[METADATA], path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = [each.name for each in inputs], [each.name for each in outputs]
    if found != (list(INPUTS), list(OUTPUTS)) or len(inputs[0].shape) != 5:
        raise ValueError(f"{path} has inputs and outputs {found}, not those of export_defvis.py")
    return TrainedModel(OnnxModel(session, config.model), config, ids, names)
