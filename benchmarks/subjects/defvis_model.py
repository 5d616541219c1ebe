"""A Deformable VisTR or VisTR of `examples/`, to be timed part by part.

Weights are random and the video is noise: what a part costs does not depend on what it has learned,
except that results are written for every slot with a mask that is not empty.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import stdeform
from benchmarks.subjects.base import WrongAnswerError
from stdeform import functional
from stdeform.testing import assert_close

# The model is an example, not a part of the package.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

PARTS = ("network", "video to results", "training step")
_INSTANCES = 3  # objects in the clip that is trained on
_CHECKED_QUERIES = 64  # of a layer, at most


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
    config: Any, height: int, width: int, seed: int, device: str = "cpu"
) -> WholeModel:
    """What can be run of a model.

    Args:
        config: A `defvis.config.Config`; one clip of its number of frames is used, and its
            precision everywhere.
        height: Of the video, in pixels, before it is scaled as the config says.
        width: Likewise.
        seed: Of weights and video.
        device: Where the model is; a call ends when the device has done its work.

    Returns:
        Calls by part and mode ("forward": as in inference, "forward+backward": as in training):

        - "network": normalised frames in; classes, boxes and masks of all slots out.
        - "video to results": bytes in, entries of results.json with run-length masks out.
        - "training step": of one clip, forward, matching, losses, backward, optimiser.

    Raises:
        WrongAnswerError: A layer of ours computes something else than its reference.
    """
    from defvis.data.clips import FrameCache, collate, make_clip
    from defvis.data.resize_crop import network_size
    from defvis.models.device import wait_for
    from defvis.models.model import DefVIS
    from defvis.models.precision import autocast
    from defvis.training.distributed import World
    from defvis.training.stages import JointStage

    torch.manual_seed(seed)
    world = World(device=torch.device(device))
    model = world.place(DefVIS(config.model))
    video = _Noise(config.model.num_frames, height, width, seed)
    size = network_size(height, width, config.data)
    scaled = FrameCache(0).frames(video, range(video.length), size)
    clip = make_clip(scaled, *_moving_squares(*scaled.shape[:3]))
    batch = collate([clip]).to(world.device)
    every_slot = torch.arange(config.model.num_slots, device=world.device)[None]
    stage = JointStage(model, config, 1, world)

    def network() -> object:
        with autocast(world.device, config.precision):
            return model.predict_masks(model(batch.frames, batch.padding_mask), every_slot)

    def step() -> object:
        losses = stage.step(batch)
        # As the next step does first; they are no part of the memory before it.
        stage.optimizer.zero_grad(set_to_none=True)
        return losses

    def run(call: Callable[[], object], is_training: bool) -> object:
        model.train(is_training)
        with torch.set_grad_enabled(is_training):
            result = call()
        wait_for(world.device)
        return result

    calls: dict[tuple[str, str], Callable[[], object]] = {
        ("network", "forward"): lambda: run(network, False),
        ("video to results", "forward"): lambda: run(lambda: _results(model, config, video), False),
        ("training step", "forward+backward"): lambda: run(step, True),
    }
    _check(model, calls["network", "forward"])
    return WholeModel(
        calls=calls,
        modules={
            "backbone": (model.backbone,),
            "encoder": (model.encoder,),
            "decoder": (model.decoder,),
            "mask head": (model.mask_features, model.mask_head),
        },
    )


def _check(model: nn.Module, run: Callable[[], object]) -> None:
    """Runs a model once and compares the sampling of each of our layers, for some queries.

    The reference in float64 gets what the layer gave to the operator, in autocast's dtype too.
    """
    attend, layer = functional.attend, ""

    def enters(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            nonlocal layer
            layer = name

        return hook

    def compare(
        value: Tensor,
        sizes: Sequence[int],
        reference: Tensor | None,
        offsets: Tensor,
        logits: Tensor,
        num_points: Sequence[int],
        backend: functional.Backend,
    ) -> Tensor:
        out = attend(value, sizes, reference, offsets, logits, num_points, backend)
        if not layer:  # a convolution of the mask head
            return out
        assert reference is not None
        some = slice(None, None, -(-offsets.shape[1] // _CHECKED_QUERIES))
        points, moves, scores = (
            tensor[:, some].double() for tensor in (reference, offsets, logits)
        )
        expected = attend(value.double(), sizes, points, moves, scores, num_points, "reference")
        try:
            assert_close(out[:, some], expected, "forward", layer)
        except AssertionError as error:
            raise WrongAnswerError(str(error)) from error
        return out

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, stdeform.STDeformAttn):
            handles.append(module.register_forward_pre_hook(enters(name)))
            handles.append(module.register_forward_hook(enters("")))
    with mock.patch.object(functional, "attend", compare):
        run()
    for handle in handles:
        handle.remove()


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

    cache, precision = FrameCache(0), config.precision
    (tracks,) = predict_videos(model, [video], config.data, cache, precision=precision)
    categories = range(1, config.model.num_classes + 1)
    results: list[dict[str, Any]] = to_results(tracks, video.id, tuple(categories))
    return results
