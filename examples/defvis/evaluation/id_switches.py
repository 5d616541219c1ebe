"""How much of the missing overlap is lost to identity switches from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defvis.evaluation.comparison import Comparison


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


def measure_id_switches(comparisons: Sequence[Comparison]) -> IdSwitches:
    """Compares results with ground truth; crowds are left out.

    Args:
        comparisons: From `compare`, of all videos.

    Raises:
        ValueError: If no object is visible in any frame.
    """
    one, best = [], []
    for comparison in comparisons:
        overlaps = comparison.overlaps
        for truth, track in enumerate(comparison.video.tracks):
            frames = np.array(sorted(track.present), dtype=np.int64)
            if track.is_crowd or not len(frames):
                continue
            iou = np.zeros((len(comparison.masks) + 1, len(frames)))  # the last finds nothing
            entries = overlaps.second == truth
            columns = np.searchsorted(frames, overlaps.frames[entries])
            iou[overlaps.first[entries], columns] = overlaps.frame_iou[entries]
            one.append(iou.mean(1).max())
            best.append(iou.max(0).mean())
    if not one:
        raise ValueError("no object is visible in any frame")
    return IdSwitches(float(np.mean(one)), float(np.mean(best)), len(one))
