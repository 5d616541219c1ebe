"""A Deformable VisTR or VisTR of `examples/`, to be timed part by part.

Weights are random and the video is noise: what a part costs does not depend on what it has learned,
except that results are written for every slot with a mask that is not empty.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import stdeform
from benchmarks.subjects.base import Case, WrongAnswerError, differentiable

# The model is an example, not a part of the package.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

PARTS = ("encoder layer", "decoder layer", "network", "video to results", "training step")
# Arguments of a layer that other layers made: what it attends from and to, the decoder's position.
_LEARNED = {"encoder layer": (0,), "decoder layer": (0, 1, 3)}
_INSTANCES = 3  # objects in the clip that is trained on


class _Noise:
    """A video of random pixels in memory, as prediction takes it."""

    id = 1

    def __init__(self, length: int, height: int, width: int, seed: int) -> None:
        self.length, self.height, self.width = length, height, width
        random = np.random.default_rng(seed)
        self._pixels = random.integers(0, 256, (length, height, width, 3), dtype=np.uint8)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """One frame, RGB [H, W, 3]."""
        frame: NDArray[np.uint8] = self._pixels[index]
        return frame


@dataclass(frozen=True)
class WholeModel:
    """A model and what can be run of it.

    Attributes:
        calls: By part and mode.
        modules: Of the network, by the name of what they are part of.
    """

    calls: dict[tuple[str, str], Callable[[], object]]
    modules: dict[str, tuple[nn.Module, ...]]


def prepare_parts(
    config: Any, height: int, width: int, seed: int, parts: Sequence[str] = PARTS
) -> WholeModel:
    """What can be run of a model.

    Args:
        config: A `defvis.config.Config`; one clip of its number of frames is used.
        height: Of the video, in pixels, before it is scaled as the config says.
        width: Likewise.
        seed: Of weights, video and gradients.
        parts: Which of `PARTS` are needed: the network runs no further than these need.

    Returns:
        Calls by part and mode ("forward": as in inference, "forward+backward": as in training):

        - "encoder layer", "decoder layer": the first of each, on what reaches it in the model; a
          dense random gradient of its result.
        - "network": normalised frames in; classes, boxes and masks of all slots out.
        - "video to results": bytes in, entries of results.json with run-length masks out.
        - "training step": of one clip, forward, matching, losses, backward, optimiser.

    Raises:
        WrongAnswerError: A layer with our operator computes something else than its reference.
    """
    from defvis.data.clips import FrameCache, collate, make_clip
    from defvis.data.resize_crop import network_size
    from defvis.models.model import DefVIS
    from defvis.training.distributed import World
    from defvis.training.stages import JointStage

    torch.manual_seed(seed)
    model = DefVIS(config.model).eval()
    video = _Noise(config.model.num_frames, height, width, seed)
    size = network_size(height, width, config.data)
    scaled = FrameCache(0).frames(video, range(video.length), size)
    batch = collate([make_clip(scaled, *_moving_squares(*scaled.shape[:3]))])
    every_slot = torch.arange(config.model.num_slots)[None]
    stage = JointStage(model, config, 1, World())

    def network() -> object:
        return model.predict_masks(model(batch.frames, batch.padding_mask), every_slot)

    layers = {
        name: _prepare_layer(name, *met)
        for name, met in _first_layers(model, batch.frames, parts).items()
    }
    inference: dict[str, Callable[[], object]] = {
        **{name: layer.forward for name, layer in layers.items()},
        "network": network,
        "video to results": lambda: _results(model, config, video),
    }
    training: dict[str, Callable[[], object]] = {
        **{name: layer.forward_backward for name, layer in layers.items()},
        "training step": lambda: stage.step(batch),
    }
    modes = (("forward", inference, False), ("forward+backward", training, True))
    return WholeModel(
        calls={
            (part, mode): functools.partial(_run, model, run, is_training)
            for mode, runs, is_training in modes
            for part, run in runs.items()
            if part in parts
        },
        modules={
            "backbone": (model.backbone,),
            "encoder": (model.encoder,),
            "decoder": (model.decoder,),
            "mask head": (model.mask_features, model.mask_head),
        },
    )


def _run(model: nn.Module, run: Callable[[], object], is_training: bool) -> object:
    model.train(is_training)
    with torch.set_grad_enabled(is_training):
        return run()


def _moving_squares(
    frames: int, height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Labels [G] and masks [G, T, H, W] of objects that cross the frame, one below the other."""
    side = height // (_INSTANCES + 1)
    masks = np.zeros((_INSTANCES, frames, height, width), dtype=bool)
    for row in range(_INSTANCES):
        for frame in range(frames):
            left = (width - side) * frame // max(1, frames - 1)
            masks[row, frame, row * side : (row + 1) * side, left : left + side] = True
    return np.arange(_INSTANCES), masks


def _results(model: Any, config: Any, video: _Noise) -> list[dict[str, Any]]:
    from defvis.data.clips import FrameCache
    from defvis.evaluation.predict import predict_videos
    from defvis.evaluation.tracks import to_results

    (tracks,) = predict_videos(model, [video], config.data, FrameCache(0))
    categories = range(1, config.model.num_classes + 1)
    results: list[dict[str, Any]] = to_results(tracks, video.id, tuple(categories))
    return results


def _prepare_layer(name: str, layer: nn.Module, arguments: tuple[Any, ...]) -> Case:
    """A checked layer on its arguments; differentiable in weights and in what other layers made."""
    places = _LEARNED[name]

    def run(*inputs: Tensor) -> Tensor:
        given = list(arguments)
        for place, tensor in zip(places, inputs, strict=False):  # the weights come after them
            given[place] = tensor
        out: Tensor = layer(*given)
        return out

    leaves = differentiable(arguments[place].clone() for place in places)
    with torch.no_grad():
        result = run(*leaves)
    # Random: of a gradient of ones the last normalisation would leave nothing but rounding.
    case = Case(run, (*leaves, *layer.parameters()), torch.randn_like(result))
    _check(name, layer, case)
    return case


def _check(name: str, layer: nn.Module, case: Case) -> None:
    """Compares a layer with the same one on the reference."""
    found = case.forward()
    deformable = [m for m in layer.modules() if isinstance(m, stdeform.STDeformAttn)]
    with contextlib.ExitStack() as restored:
        for module in deformable:
            restored.callback(setattr, module, "backend", module.backend)
            module.backend = "reference"
        expected = case.forward()
    try:
        # The layer ends in a normalisation, so values are about 1; rounding in float32 moves them
        # by about 1e-6.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    except AssertionError as error:
        raise WrongAnswerError(f"the {name}: {error}") from error


class _AllFoundError(Exception):
    """Ends a run of the network when the rest is not needed."""


def _first_layers(
    model: Any, frames: Tensor, parts: Sequence[str]
) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """The first layers of encoder and decoder, each with its arguments when the model runs."""
    found: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
    layers = {"encoder layer": model.encoder.layers[0], "decoder layer": model.decoder.layers[0]}
    wanted = {layer: name for name, layer in layers.items() if name in parts}

    def keep(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        found[wanted[layer]] = (layer, arguments)
        if len(found) == len(wanted):
            raise _AllFoundError

    handles = [layer.register_forward_pre_hook(keep) for layer in wanted]
    try:
        if wanted:
            with torch.no_grad(), contextlib.suppress(_AllFoundError):
                model(frames)
    finally:
        for handle in handles:
            handle.remove()
    return found
