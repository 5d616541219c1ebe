"""From network outputs to tracks: classes, scores and masks of every slot, per video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from defvis.config import DataConfig
from defvis.data import rle
from defvis.data.clips import FrameCache, collate, make_clip
from defvis.data.ytvis import Video, YouTubeVIS
from defvis.model import DefVIS

# A (slot, class) below this score is not worth a track.
MIN_SCORE = 0.02


@dataclass(frozen=True)
class SlotTrack:
    """What one slot says about a video.

    Attributes:
        slot: Its index, the identity through the video.
        scores: One score per class, [num_classes].
        masks: bool [T, H, W] at the video's own size; empty where the object is absent.
    """

    slot: int
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]

    @property
    def label(self) -> int:
        """The likeliest class."""
        return int(self.scores.argmax())


@torch.no_grad()
def predict_videos(
    model: DefVIS,
    videos: Sequence[Video],
    config: DataConfig,
    cache: FrameCache,
    batch_size: int = 4,
    progress: bool = False,
) -> Iterator[list[SlotTrack]]:
    """Predicts the slots of each video, the whole video as one clip.

    Args:
        model: In eval mode.
        videos: Any lengths and sizes.
        config: For the size of the frames.
        cache: Holds decoded frames.
        batch_size: Videos per forward pass.
        progress: Shows a progress bar.

    Yields:
        The slots of one video, in order of `videos`; slots whose masks are empty throughout are
        left out.
    """
    device = next(model.parameters()).device
    with tqdm(total=len(videos), desc="predict", unit="video", disable=not progress) as bar:
        for start in range(0, len(videos), batch_size):
            chunk = videos[start : start + batch_size]
            clips = []
            for video in chunk:
                pixels = cache.frames(video, range(video.length), config.short_side)
                nothing = np.zeros((0, *pixels.shape[:3]), dtype=bool)
                clips.append(make_clip(pixels, np.zeros(0, dtype=np.int64), nothing))
            batch = collate(clips)
            padding = None if batch.padding_mask is None else batch.padding_mask.to(device)
            outputs = model(batch.frames.to(device), padding)
            slots = torch.arange(model.config.num_slots, device=device)
            masks = model.predict_masks(outputs, slots.expand(len(chunk), -1))
            frame_size = batch.frames.shape[-2:]
            for row, (video, clip) in enumerate(zip(chunk, clips, strict=True)):
                length, _, height, width = clip.frames.shape
                yield slot_tracks(
                    outputs.class_logits[-1, row, :, :length],
                    _to_video(masks[row, :, :length], frame_size, (height, width), video),
                )
                bar.update()


def slot_tracks(class_logits: Tensor, mask_logits: Tensor) -> list[SlotTrack]:
    """Scores the slots of a video.

    A slot's score for a class is the mean of the class probability over the frames in which its
    mask is not empty.

    Args:
        class_logits: [I, T, num_classes].
        mask_logits: [I, T, H, W].
    """
    masks = mask_logits > 0
    present = masks.flatten(2).any(-1)
    weight = present[..., None].to(class_logits.dtype)
    scores = (class_logits.sigmoid() * weight).sum(1) / weight.sum(1).clamp(min=1)
    return [
        SlotTrack(slot, scores[slot].cpu().numpy(), masks[slot].cpu().numpy())
        for slot in range(len(masks))
        if present[slot].any()
    ]


def to_results(tracks: Sequence[SlotTrack], video: Video, data: YouTubeVIS) -> list[dict[str, Any]]:
    """Tracks as entries of a YouTube-VIS results.json, one per (slot, class above MIN_SCORE)."""
    results = []
    for track in tracks:
        segmentations = [
            rle.to_json(rle.encode(mask)) if mask.any() else None for mask in track.masks
        ]
        for label in np.flatnonzero(track.scores > MIN_SCORE):
            results.append(
                {
                    "video_id": video.id,
                    "category_id": data.category_ids[label],
                    "score": float(track.scores[label]),
                    "segmentations": segmentations,
                }
            )
    return results


def _to_video(logits: Tensor, padded: Sequence[int], real: tuple[int, int], video: Video) -> Tensor:
    """Enlarges mask logits [I, T, h, w] to the padded frame, cuts the padding, fits the video."""
    logits = F.interpolate(logits, size=tuple(padded), mode="bilinear", align_corners=False)
    logits = logits[..., : real[0], : real[1]]
    if real != (video.height, video.width):
        logits = F.interpolate(
            logits, size=(video.height, video.width), mode="bilinear", align_corners=False
        )
    return logits
