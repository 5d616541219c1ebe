"""Video average precision as YouTube-VIS defines it (ytvoseval).

Two differences to the official program: a list of segmentations shorter than the video is an error
(there, the missing frames cost nothing; see `results`), and an annotation with id 0 can be matched.
An empty list of results scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defvis.data.dataset import YouTubeVIS
from defvis.evaluation.comparison import MOST_RESULTS, Comparison, compare

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, MOST_RESULTS)
# Mean mask area of a track in pixels, both ends included.
AREA_RANGES = {
    "all": (0.0, 1e10),
    "small": (0.0, 128.0**2),
    "medium": (128.0**2, 256.0**2),
    "large": (256.0**2, 1e10),
}


@dataclass(frozen=True)
class VideoAP:
    """The figures of ytvoseval, 0 to 1; -1 where no ground truth exists.

    Attributes:
        figures: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.
        per_class: AP of each class index.
    """

    figures: dict[str, float]
    per_class: tuple[float, ...]

    def __str__(self) -> str:
        names = ("AP", "AP50", "AP75", "AR1", "AR10")
        return "  ".join(f"{name} {self.figures[name]:.3f}" for name in names)


def evaluate(data: YouTubeVIS, results: Sequence[Mapping[str, Any]]) -> VideoAP:
    """Scores results against ground truth.

    Args:
        data: Ground truth.
        results: Entries as `results.check_results` takes them.

    Raises:
        ResultError: If an entry breaks a rule.
    """
    return average_precision(data, compare(data, results))


def average_precision(data: YouTubeVIS, comparisons: Sequence[Comparison]) -> VideoAP:
    """Does what `evaluate` does, from the result of `compare`."""
    shape = (len(IOU_THRESHOLDS), data.num_classes, len(AREA_RANGES), len(MAX_DETECTIONS))
    precision = np.full((*shape, len(RECALL_THRESHOLDS)), -1.0)
    recall = np.full(shape, -1.0)
    for label in range(data.num_classes):
        problems = [_Problem(comparison, label) for comparison in comparisons]
        for area, limits in enumerate(AREA_RANGES.values()):
            matched = [problem.match(limits) for problem in problems]
            for top, limit in enumerate(MAX_DETECTIONS):
                accumulated = _accumulate(matched, limit)
                if accumulated is not None:
                    precision[:, label, area, top], recall[:, label, area, top] = accumulated

    def mean(values: NDArray[np.float64]) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    figures = {
        "AP": mean(precision[:, :, 0, -1]),
        "AP50": mean(precision[0, :, 0, -1]),
        "AP75": mean(precision[5, :, 0, -1]),
        **{f"AP{name[0]}": mean(precision[:, :, i, -1]) for i, name in _sized()},
        **{f"AR{limit}": mean(recall[:, :, 0, i]) for i, limit in enumerate(MAX_DETECTIONS)},
        **{f"AR{name[0]}": mean(recall[:, :, i, -1]) for i, name in _sized()},
    }
    per_class = tuple(mean(precision[:, label, 0, -1]) for label in range(data.num_classes))
    return VideoAP(figures, per_class)


def match(comparison: Comparison) -> NDArray[np.int64]:
    """The object that each result is matched with, whatever its size.

    Returns:
        [len(IOU_THRESHOLDS), D] indices of `comparison.video.tracks`, crowds among them; -1 for
        none.
    """
    matched = np.full((len(IOU_THRESHOLDS), len(comparison.labels)), -1)
    for label in np.unique(comparison.labels).tolist():
        columns = np.append(np.flatnonzero(comparison.truth_labels == label), -1)
        found = _Problem(comparison, label).match(AREA_RANGES["all"]).found
        matched[:, comparison.labels == label] = columns[found]
    return matched


@dataclass(frozen=True)
class _Matched:
    """Outcome of one (video, class, area range): arrays over thresholds and detections."""

    scores: NDArray[np.float64]  # [D], falling
    found: NDArray[np.int64]  # index of the object of this class or -1, [thresholds, D]
    ignored: NDArray[np.bool_]  # [thresholds, D]
    num_truths: int  # not ignored


class _Problem:
    """Tracks and detections of one (video, class), with their overlaps computed once."""

    def __init__(self, comparison: Comparison, label: int) -> None:
        rows = np.flatnonzero(comparison.labels == label)
        columns = np.flatnonzero(comparison.truth_labels == label)
        truths = [comparison.video.tracks[index] for index in columns.tolist()]
        self._scores = comparison.scores[rows]
        self._areas = np.array(
            [_mean_area(comparison.detections[index].areas) for index in rows.tolist()]
        )
        self._truth_areas = np.array([_mean_area(track.areas) for track in truths])
        self._crowd = comparison.crowd[columns]
        self._iou = comparison.iou[np.ix_(rows, columns)]

    def match(self, area: tuple[float, float]) -> _Matched:
        """Greedy matching of detections, by falling score, at every IoU threshold."""
        low, high = area
        outside = (self._truth_areas < low) | (self._truth_areas > high)
        ignore_truth = self._crowd | outside
        # Real truths come first, so that a real match is preferred to an ignored one.
        order = np.argsort(ignore_truth, kind="stable")
        shape = (len(IOU_THRESHOLDS), len(self._scores))
        matched, ignored = np.full(shape, -1), np.zeros(shape, dtype=bool)
        for row, threshold in enumerate(IOU_THRESHOLDS):
            taken: set[int] = set()
            for column in range(len(self._scores)):
                best, found = min(threshold, 1 - 1e-10), -1
                for truth in order.tolist():
                    if truth in taken and not self._crowd[truth]:
                        continue
                    if found >= 0 and not ignore_truth[found] and ignore_truth[truth]:
                        break
                    if self._iou[column, truth] >= best:
                        best, found = self._iou[column, truth], truth
                if found >= 0:
                    taken.add(found)
                    matched[row, column], ignored[row, column] = found, ignore_truth[found]
        ignored |= (matched < 0) & ((self._areas < low) | (self._areas > high))
        return _Matched(self._scores, matched, ignored, int((~ignore_truth).sum()))


def _accumulate(
    matched: Sequence[_Matched], limit: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Precision [thresholds, recall thresholds] and recall [thresholds] of a class.

    Returns None if the class has no ground truth.
    """
    truths = sum(part.num_truths for part in matched)
    if not truths:
        return None
    scores = np.concatenate([part.scores[:limit] for part in matched])
    hit = np.concatenate([part.found[:, :limit] for part in matched], axis=1) >= 0
    ignored = np.concatenate([part.ignored[:, :limit] for part in matched], axis=1)
    return precision_and_recall(scores, hit, ignored, truths)


def precision_and_recall(
    scores: NDArray[np.float64], hit: NDArray[np.bool_], ignored: NDArray[np.bool_], truths: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision at each of RECALL_THRESHOLDS, and the highest recall, of one class.

    Args:
        scores: Of the results, [D].
        hit: Whether a result is matched, [thresholds, D].
        ignored: Whether it does not count, [thresholds, D].
        truths: Number of objects, at least 1.

    Returns:
        [thresholds, len(RECALL_THRESHOLDS)] and [thresholds].
    """
    order = np.argsort(-scores, kind="stable")
    hit, ignored = hit[:, order], ignored[:, order]
    true = (hit & ~ignored).cumsum(axis=1).astype(float)
    false = (~hit & ~ignored).cumsum(axis=1).astype(float)
    recalls = true / truths
    precisions = true / (true + false + np.spacing(1))
    precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    # Beyond the last recall the precision is 0.
    precisions = np.concatenate((precisions, np.zeros((len(precisions), 1))), axis=1)
    sampled = np.stack(
        [
            row[np.searchsorted(reached, RECALL_THRESHOLDS, side="left")]
            for row, reached in zip(precisions, recalls, strict=True)
        ]
    )
    return sampled, recalls[:, -1] if recalls.shape[1] else np.zeros(len(recalls))


def _mean_area(areas: Sequence[float | None]) -> float:
    """Mean over the frames where a track has pixels; 0 if it has none."""
    present = [value for value in areas if value]
    return float(np.mean(present)) if present else 0.0


def _sized() -> list[tuple[int, str]]:
    return [(index, name) for index, name in enumerate(AREA_RANGES) if name != "all"]
