"""Tries the model on the frames that a run will show it, before the first step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import torch

from defvis.config import Config, DataConfig
from defvis.data.dataset import Video
from defvis.data.resize_crop import Size, network_size
from defvis.models.model import DefVIS


def training_sizes(video: Video, config: DataConfig) -> set[Size]:
    """The extreme sizes, height and width, at which training shows a video."""
    config = replace(config, seen_short_sides=())  # It is for what comes after training.
    sizes = {(video.height, video.width)}
    if config.crop > 0:
        shares = itertools.product(config.crop_share, repeat=2)
        sizes |= {
            (max(1, round(video.height * high)), max(1, round(video.width * wide)))
            for high, wide in shares
        }
    if not config.short_sides:
        return {network_size(*size, config) for size in sizes}
    largest, smallest = max(config.short_sides), min(config.short_sides)
    whole = {network_size(*size, replace(config, short_side=largest)) for size in sizes}
    return whole | {
        (max(1, round(height * smallest / largest)), max(1, round(width * smallest / largest)))
        for height, width in whole
    }


def extremes(train: Iterable[Video], val: Iterable[Video], config: DataConfig) -> list[Size]:
    """Of all sizes of frames: the lowest, the narrowest, and last the one of most pixels."""
    sizes = set[Size]().union(*(training_sizes(video, config) for video in train))
    sizes |= {network_size(video.height, video.width, config) for video in val}
    lowest, narrowest = min(sizes), min(sizes, key=lambda size: (size[1], size[0]))
    return [*dict.fromkeys((lowest, narrowest)), max(sizes, key=lambda size: size[0] * size[1])]


def try_model(model: DefVIS, sizes: list[Size], config: Config) -> None:
    """Runs the model in training mode on black frames; its weights and buffers stay as they are.

    Args:
        model: On the CPU, in one piece.
        sizes: Of `extremes`. The largest is shown to the backbone only, and one frame.
        config: All numbers.

    Raises:
        ValueError: If the model cannot take frames of a size; the message names it.
    """
    clips, frames = min(2, config.batch_size), min(2, config.model.num_frames)
    slots = torch.zeros(clips, 1, dtype=torch.int64)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    size = sizes[0]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for size in sizes[:-1]:
                outputs = model(torch.zeros(clips, frames, 3, *size))
                model.predict_masks(outputs, slots)
            size = sizes[-1]
            model.backbone.eval()(torch.zeros(1, 3, *size))
    except Exception as error:  # A backbone from elsewhere may raise any.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        name = config.model.backbone.name
        raise ValueError(
            f"the model{f' with backbone {name}' if name else ''} cannot take frames of "
            f"{size[0]} x {size[1]} pixels (height x width), which the data have: {reason}"
        ) from error
    finally:
        model.train()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def leaves_some_unused(model: DefVIS, size: Size) -> bool:
    """True if weights of the backbone take no part in its maps, such as those of later stages.

    Args:
        model: On the CPU, in one piece.
        size: Of a frame to try.
    """
    backbone = model.backbone.eval()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        maps = backbone(torch.zeros(1, 3, *size))
        learning = [weight for weight in backbone.parameters() if weight.requires_grad]
        # The last maps are projected, the others may feed the mask head: all of them are used.
        total = sum((each.float().sum() for each in maps), torch.zeros(()))
        gradients = torch.autograd.grad(total, learning, allow_unused=True) if learning else ()
    model.train()
    return any(gradient is None for gradient in gradients)
