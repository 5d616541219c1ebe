"""How much of the missing overlap is lost to identity switches from frame to frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from defvis.data import rle
from defvis.data.dataset import YouTubeVIS
from defvis.data.rle import RLE
from defvis.evaluation.results import check_results


@dataclass(frozen=True)
class IdSwitches:
    """Mean IoU of the objects' visible frames, whatever class and score the results have.

    Attributes:
        one_result: With the one result that fits an object best in all of its frames.
        best_per_frame: With the result that fits best in each frame: what is left if identities
            may change from frame to frame.
        tracks: Number of objects.
    """

    one_result: float
    best_per_frame: float
    tracks: int

    @property
    def share_of_loss(self) -> float:
        """What identity switches cost, as a share of all that is missing to an IoU of 1."""
        missing = 1 - self.one_result
        return (self.best_per_frame - self.one_result) / missing if missing else 0.0

    def __str__(self) -> str:
        return (
            f"frame IoU {self.one_result:.3f} with one result per object, "
            f"{self.best_per_frame:.3f} with the best of each frame: identity switches are "
            f"{self.share_of_loss:.1%} of the loss ({self.tracks} objects)"
        )


def measure_id_switches(data: YouTubeVIS, results: Sequence[Mapping[str, Any]]) -> IdSwitches:
    """Compares results with ground truth; crowds are left out.

    Args:
        data: Ground truth.
        results: As in `ap.evaluate`.

    Raises:
        ResultError: If an entry breaks a rule.
        ValueError: If no object is visible in any frame.
    """
    by_video: dict[int, list[Mapping[int, RLE]]] = defaultdict(list)
    for (video_id, _), detections in check_results(data, results).items():
        by_video[video_id] += [detection.masks for detection in detections]
    one, best = [], []
    for video in data.videos:
        # Several classes of one slot have the same masks.
        candidates = list({_key(masks): masks for masks in by_video[video.id]}.values())
        for track in video.tracks:
            truth = track.present
            if track.is_crowd or not truth:
                continue
            overlaps = np.zeros((len(candidates) + 1, len(truth)))  # the last finds nothing
            for row, masks in enumerate(candidates):
                overlaps[row] = [_iou(masks.get(t), mask) for t, mask in truth.items()]
            one.append(overlaps.mean(1).max())
            best.append(overlaps.max(0).mean())
    if not one:
        raise ValueError("no object is visible in any frame")
    return IdSwitches(float(np.mean(one)), float(np.mean(best)), len(one))


def _key(masks: Mapping[int, RLE]) -> tuple[tuple[int, bytes], ...]:
    return tuple((frame, mask["counts"]) for frame, mask in masks.items())


def _iou(mask: RLE | None, truth: RLE) -> float:
    if mask is None:
        return 0.0
    shared = rle.intersection(mask, truth)
    return shared / (rle.area(mask) + rle.area(truth) - shared)
