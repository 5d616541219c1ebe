"""What can be known about a prediction before its first clip."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from defvis.data.ytvis import Frames
from defvis.evaluation.predict import Predictor
from defvis.export.onnx_model import OnnxModel


def find_device(name: str) -> torch.device:
    """The device of that name, "" for the first GPU or, without one, the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error
    return device


def check_clips(model: Predictor, videos: Iterable[Frames], window: int) -> None:
    """Checks that a model takes the clips that `predict_videos` will cut.

    Raises:
        ValueError: If it has weights for another number of frames.
    """
    lengths = {min(video.length, window or model.config.num_frames) for video in videos}
    config = model.config
    if isinstance(model, OnnxModel) and model.num_frames is not None:
        wrong = lengths - {model.num_frames}
        if wrong:
            raise ValueError(
                f"this file takes clips of {model.num_frames} frames, got one of {min(wrong)}"
            )
    by_frame = "frames" in (config.encoder_attention, config.decoder_attention)
    if by_frame and max(lengths) > config.num_frames:
        raise ValueError(
            f"attention 'frames' has weights for num_frames = {config.num_frames} frames, got "
            f"a clip of {max(lengths)}: choose a smaller window"
        )
