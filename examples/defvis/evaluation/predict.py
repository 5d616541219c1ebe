"""Runs a model over videos of any length and size, as overlapping clips."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from defvis.config import DataConfig, ModelConfig
from defvis.data.clips import FrameCache, collate, make_clip
from defvis.data.dataset import Frames
from defvis.data.resize_crop import network_size
from defvis.evaluation.journal import Journal
from defvis.evaluation.tracks import SlotTrack, TrackBuilder
from defvis.models.precision import autocast
from defvis.progress import Progress


class Predictor(Protocol):
    """A model that can be run over videos: `DefVIS`, or one in another runtime.

    Attributes:
        config: Its parts and sizes.
        device: Where it expects its inputs.
        num_frames: Frames that a clip must have; None if that is not fixed.
    """

    config: ModelConfig

    @property
    def device(self) -> torch.device: ...

    @property
    def num_frames(self) -> int | None: ...

    def predict(
        self, frames: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `DefVIS.predict`."""
        ...


@torch.no_grad()
def predict_videos(
    model: Predictor,
    videos: Sequence[Frames],
    config: DataConfig,
    cache: FrameCache,
    batch_size: int = 4,
    window: int = 0,
    progress: bool = False,
    precision: str = "fp32",
    journal: Journal | None = None,
    done: int = 0,
) -> Iterator[list[SlotTrack]]:
    """Predicts the tracks of each video.

    A video of at most `window` frames is one clip. A longer one is cut into clips of `window`
    frames that overlap by half at least, and their slots are linked, see `TrackBuilder`. Clips of
    one frame cannot overlap: each is compared with the one before.

    Args:
        model: In eval mode, if it is `DefVIS`.
        videos: Any lengths and sizes.
        config: For the size of the frames.
        cache: Holds decoded frames.
        batch_size: Clips per forward pass.
        window: Frames per clip; 0 takes as many as the model was trained on.
        progress: Shows progress.
        precision: "fp32", or what the model computes in, "bf16" or "fp16".
        journal: Takes the finished frames of a single long video, and the state after each batch
            of clips; if it holds a state, the prediction goes on from there. None keeps them in
            memory.
        done: Number of first videos to leave out. The others are predicted in the batches that
            they would have been in.

    Yields:
        The tracks of one video, in order of `videos`; tracks without any mask are
        left out.

    Raises:
        ValueError: If `window` is below 0 or `batch_size` below 1, or there is a journal for
            several videos.
    """
    if window < 0 or batch_size < 1:
        raise ValueError(
            f"window must be at least 0 and batch_size at least 1, got {window} and {batch_size}"
        )
    if journal is not None and len(videos) != 1:
        raise ValueError(f"a journal is for one video, got {len(videos)}")
    window = window or model.config.num_frames
    network = _Network(model, precision)
    first = 0  # video of the group
    with Progress("predict", "video", len(videos), disable=not progress) as shown:
        for group in _groups(videos, config, batch_size, window):
            skipped = min(len(group), max(0, done - first))
            first += len(group)
            if skipped < len(group):
                if group[0].length > window:
                    own = Journal() if journal is None else journal
                    yield _predict_long(
                        network, group[0], config, cache, batch_size, window, progress, own
                    )
                else:
                    yield from list(_predict_whole(network, group, config, cache))[skipped:]
            shown.update(len(group))


def check_clips(model: Predictor, videos: Iterable[Frames], window: int) -> None:
    """Checks that a model takes the clips that `predict_videos` will cut.

    Raises:
        ValueError: If it has weights for another number of frames.
    """
    lengths = {min(video.length, window or model.config.num_frames) for video in videos}
    config = model.config
    if model.num_frames is not None and (wrong := lengths - {model.num_frames}):
        raise ValueError(
            f"this model takes clips of {model.num_frames} frames, got one of {min(wrong)}"
        )
    by_frame = "frames" in (config.encoder_attention, config.decoder_attention)
    if by_frame and max(lengths) > config.num_frames:
        raise ValueError(
            f"attention 'frames' has weights for num_frames = {config.num_frames} frames, got "
            f"a clip of {max(lengths)}: choose a smaller window"
        )


def clip_starts(length: int, window: int) -> list[int]:
    """First frames of clips of `window` frames that cover a longer video, half overlapping.

    The last clip ends with the video, so it may overlap more.
    """
    return [*range(0, length - window, window - window // 2), length - window]


def _groups(
    videos: Sequence[Frames], config: DataConfig, batch_size: int, window: int
) -> Iterator[list[Frames]]:
    """Neighbouring short videos whose frames have one size, or one long video.

    Frames of different sizes would have to be padded, which changes the features of cells at the
    border of the padding.
    """

    def kind(video: Frames) -> tuple[object, ...]:
        size = network_size(video.height, video.width, config)
        return (*size, video.id) if video.length > window else size

    for _, same in itertools.groupby(videos, kind):
        group = list(same)
        for begin in range(0, len(group), batch_size):
            yield group[begin : begin + batch_size]


def _predict_whole(
    network: _Network, videos: Sequence[Frames], config: DataConfig, cache: FrameCache
) -> Iterator[list[SlotTrack]]:
    pixels = [_frames(video, range(video.length), config, cache) for video in videos]
    predicted = network(pixels)
    for video, (frame_size, probabilities, mask_logits) in zip(videos, predicted, strict=True):
        builder = TrackBuilder(video, frame_size)
        builder.add(0, probabilities, mask_logits)
        yield builder.tracks()


def _predict_long(
    network: _Network,
    video: Frames,
    config: DataConfig,
    cache: FrameCache,
    batch_size: int,
    window: int,
    progress: bool,
    journal: Journal,
) -> list[SlotTrack]:
    starts = clip_starts(video.length, window)
    done: int = journal.saved.get("clips", 0)
    frame_size = network_size(video.height, video.width, config)
    builder = TrackBuilder(video, frame_size, journal, journal.saved.get("builder"))
    with Progress(f"video {video.id}", "clip", len(starts), done, disable=not progress) as shown:
        while done < len(starts):
            chunk = starts[done : done + batch_size]
            pixels = [
                _frames(video, range(start, start + window), config, cache) for start in chunk
            ]
            for start, (_, probabilities, mask_logits) in zip(chunk, network(pixels), strict=True):
                builder.add(start, probabilities, mask_logits)
            done += len(chunk)
            builder.finish(starts[done] if done < len(starts) else video.length)
            journal.save({"clips": done, "builder": builder.state()})
            shown.update(len(chunk))
    return builder.tracks()


def _frames(
    video: Frames, indices: range, config: DataConfig, cache: FrameCache
) -> NDArray[np.uint8]:
    return cache.frames(video, indices, network_size(video.height, video.width, config))


class _Network:
    """The model on a list of clips."""

    def __init__(self, model: Predictor, precision: str) -> None:
        self._model, self._precision = model, precision

    def __call__(
        self, pixels: Sequence[NDArray[np.uint8]]
    ) -> Iterator[tuple[tuple[int, int], torch.Tensor, torch.Tensor]]:
        """Frame size, class probabilities [I, T, classes], mask logits [I, T, h, w] of each clip.

        Args:
            pixels: RGB [T, H, W, 3] of each clip; T may differ.
        """
        nothing = np.zeros(0, dtype=np.int64)
        clips = [make_clip(p, nothing, np.zeros((0, *p.shape[:3]), dtype=bool)) for p in pixels]
        batch = collate(clips).to(self._model.device)
        with autocast(self._model.device, self._precision):
            probabilities, _, masks = self._model.predict(batch.frames, batch.padding_mask)
        height, width = batch.frames.shape[-2:]
        for row, clip in enumerate(clips):
            length = len(clip.frames)
            yield ((height, width), probabilities[row, :, :length], masks[row, :, :length])
