"""Tracks of a video from the slots of its clips: slots of overlapping clips are linked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from defvis.data import rle
from defvis.data.rle import RLE
from defvis.data.ytvis import Frames

# A (track, class) below this score is not worth an entry in a results list.
MIN_SCORE = 0.02
# Two slots of neighbouring clips are one object if their masks overlap at least this much (IoU
# over the shared frames). Half of a mask may be wrong on either side of a clip's border.
_MIN_LINK_IOU = 0.3


@dataclass(frozen=True)
class SlotTrack:
    """The prediction of a slot for a video, or of the slots of several clips for one object.

    Attributes:
        identity: Number of the object. In a video of one clip it is the slot's index.
        scores: One score per class, [num_classes]: its mean probability over the frames in which
            the object is drawn, times the mean probability of the pixels that are drawn. So a
            track with an uncertain outline comes after one with a certain outline, as in Cheng et
            al., "Mask2Former for Video Instance Segmentation", 2021.
        masks: One entry per frame, at the video's own size; None where the object is absent.
    """

    identity: int
    scores: NDArray[np.float32]
    masks: tuple[RLE | None, ...]

    @property
    def label(self) -> int:
        """The likeliest class."""
        return int(self.scores.argmax())

    @property
    def score(self) -> float:
        """The score of the likeliest class."""
        return float(self.scores.max())


class TrackBuilder:
    """Turns the clips of one video into tracks; keeps only frames that later clips can change.

    Clips must come in order and may overlap; where they do, linked slots are averaged
    (probabilities of classes, logits of masks). An object that is absent from all shared frames
    gets a new identity when it returns in a later clip.

    Args:
        video: The video.
        frame_size: Height and width in pixels of the frames that the network was given.
    """

    def __init__(self, video: Frames, frame_size: tuple[int, int]) -> None:
        self._video, self._frame_size = video, frame_size
        self._next = 0  # The lowest unused identity.
        self._first = self._end = 0  # Frames of the open part; earlier ones are in `_masks`.
        self._open: dict[int, _Sums] = {}
        self._masks: dict[int, list[RLE | None]] = {}
        self._drawn: dict[int, list[_Drawn]] = {}  # of the frames in which there is a mask

    def add(self, start: int, probabilities: Tensor, mask_logits: Tensor) -> None:
        """Adds a clip.

        Args:
            start: Its first frame, not before the last clip's.
            probabilities: [I, T, num_classes].
            mask_logits: [I, T, h, w], the frame at any scale; positive inside.
        """
        self._finish(start)
        self._first = start
        linked = self._link(mask_logits)
        free, self._next = self._next, self._next + len(mask_logits)
        end = start + mask_logits.shape[1]
        for slot, (classes, masks) in enumerate(zip(probabilities, mask_logits, strict=True)):
            sums = _Sums(classes, masks, torch.ones_like(masks[:, 0, 0]))
            identity = linked.get(slot, free + slot)
            before = self._open.get(identity)
            self._open[identity] = sums if before is None else before + sums
        self._end = max(self._end, end)

    def tracks(self) -> list[SlotTrack]:
        """Ends the video; tracks without any mask are left out."""
        self._finish(self._end)
        return [
            SlotTrack(identity, _scores(self._drawn[identity]), tuple(masks))
            for identity, masks in self._masks.items()
        ]

    def _link(self, mask_logits: Tensor) -> dict[int, int]:
        """The open track that each slot of a new clip continues, if any."""
        shared = min(self._end - self._first, mask_logits.shape[1])
        if shared <= 0 or not self._open or not len(mask_logits):
            return {}
        open_masks = torch.stack([_padded(sums.masks, shared) for sums in self._open.values()])
        old = (open_masks[:, :shared] > 0).flatten(1).float()
        new = (mask_logits[:, :shared] > 0).flatten(1).float()
        both = old @ new.T
        union = old.sum(1)[:, None] + new.sum(1) - both
        iou = (both / union.clamp(min=1)).cpu().numpy()
        identities = list(self._open)
        return {
            int(slot): identities[row]
            for row, slot in zip(*linear_sum_assignment(iou, maximize=True), strict=True)
            if iou[row, slot] >= _MIN_LINK_IOU
        }

    def _finish(self, end: int) -> None:
        """Writes the frames before `end`, which no later clip can change."""
        for identity, sums in self._open.items():
            for index in range(min(end - self._first, len(sums.count))):
                logits = self._to_video(sums.masks[index] / sums.count[index])
                mask = logits > 0
                if mask.any():
                    empty: list[RLE | None] = [None] * self._video.length
                    encoded = rle.encode(mask.cpu().numpy())
                    self._masks.setdefault(identity, empty)[self._first + index] = encoded
                    inside = logits[mask].sigmoid()
                    drawn = _Drawn(
                        sums.classes[index] / sums.count[index], float(inside.sum()), len(inside)
                    )
                    self._drawn.setdefault(identity, []).append(drawn)
        done = max(0, end - self._first)
        self._open = {
            identity: _Sums(sums.classes[done:], sums.masks[done:], sums.count[done:])
            for identity, sums in self._open.items()
            if len(sums.count) > done
        }

    def _to_video(self, logits: Tensor) -> Tensor:
        """Enlarges mask logits [h, w] to the network's frame, then to the video's."""
        size = (self._video.height, self._video.width)
        for wanted in dict.fromkeys((self._frame_size, size)):
            logits = F.interpolate(
                logits[None, None], size=wanted, mode="bilinear", align_corners=False
            )[0, 0]
        return logits


def to_results(
    tracks: Sequence[SlotTrack], video_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Tracks as entries of a YouTube-VIS results.json, one per (track, class above MIN_SCORE)."""
    results = []
    for track in tracks:
        segmentations = [None if mask is None else rle.to_json(mask) for mask in track.masks]
        for label in np.flatnonzero(track.scores > MIN_SCORE).tolist():
            results.append(
                {
                    "video_id": video_id,
                    "category_id": category_ids[label],
                    "score": float(track.scores[label]),
                    "segmentations": segmentations,
                }
            )
    return results


@dataclass(frozen=True)
class _Drawn:
    """What a track's score needs of a frame in which its mask is not empty."""

    classes: Tensor  # [num_classes], probabilities
    inside: float  # sum of the probabilities of the mask's pixels
    pixels: int  # number of these pixels


def _scores(frames: Sequence[_Drawn]) -> NDArray[np.float32]:
    """See `SlotTrack.scores`."""
    classes = torch.stack([frame.classes for frame in frames]).mean(0)
    sureness = sum(frame.inside for frame in frames) / sum(frame.pixels for frame in frames)
    scores: NDArray[np.float32] = (classes * sureness).cpu().numpy()
    return scores


@dataclass(frozen=True)
class _Sums:
    """Open frames of one track: sums over clips, and the number of clips."""

    classes: Tensor  # [P, num_classes]
    masks: Tensor  # [P, h, w]
    count: Tensor  # [P]

    def __add__(self, other: _Sums) -> _Sums:
        length = max(len(self.count), len(other.count))
        pairs = (
            (self.classes, other.classes),
            (self.masks, other.masks),
            (self.count, other.count),
        )
        return _Sums(*(_padded(a, length) + _padded(b, length) for a, b in pairs))


def _padded(sums: Tensor, length: int) -> Tensor:
    """`sums` with zeros at the end of its first axis."""
    missing = max(0, length - len(sums))
    return torch.cat((sums, sums.new_zeros(missing, *sums.shape[1:])))
