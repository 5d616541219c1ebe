"""Counts the errors of results over all videos, and says them as a table of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defvis.data.dataset import YouTubeVIS
from defvis.errors.identities import Identities, find_identities
from defvis.errors.kinds import ERRORS, Cost, Kinds, find_kinds, measure_costs
from defvis.evaluation.ap import IOU_THRESHOLDS, match
from defvis.evaluation.comparison import Comparison

# Confusions of classes that are named in the text.
_NAMED = 5


@dataclass(frozen=True)
class VideoErrors:
    """The errors of one video.

    Attributes:
        comparison: Its results and objects.
        kinds: What kind each of them is, at an IoU of 0.5.
        identities: Objects that are split, merged or swapped.
    """

    comparison: Comparison
    kinds: Kinds
    identities: Identities

    @property
    def quality(self) -> float:
        """Video panoptic quality of the objects, 0 to 1; 1 where nothing is and nothing is found.

        The sum of the IoU of the correct results, over the mean of the number of results and the
        number of objects (Kim et al., "Video Panoptic Segmentation", CVPR 2020, here over all
        frames and classes of the video).
        """
        correct = np.flatnonzero(self.kinds.results == "correct")
        iou = self.comparison.iou[correct, self.kinds.about[correct]].sum()
        results = (~np.isin(self.kinds.results, ("ignored", "left out"))).sum()
        objects = (self.kinds.objects != "crowd").sum()
        return float(2 * iou / (results + objects)) if results + objects else 1.0

    @property
    def number(self) -> int:
        """Results that are wrong and objects that are missed."""
        results, objects = self.kinds.results, self.kinds.objects
        return int(np.isin(results, ERRORS).sum() + (objects == "missed").sum())


@dataclass(frozen=True)
class ErrorCounts:
    """The errors of all videos.

    Attributes:
        threshold: Least score of the results that are counted.
        results: Number of results of each kind, see `errors`.
        objects: Number of objects of each kind.
        confusion: Results by class, [C + 1, C + 1]: a row for each class of the objects, and for
            results where no object has an IoU of 0.5; a column for each class of the results, and
            for objects without any result of this IoU. Duplicates are not in it.
        costs: What each of ERRORS costs in AP, whatever the threshold.
        videos: The errors of each video, by video id.
    """

    threshold: float
    results: Mapping[str, int]
    objects: Mapping[str, int]
    confusion: NDArray[np.int64]
    costs: Mapping[str, Cost]
    videos: tuple[VideoErrors, ...]

    @property
    def worst_first(self) -> list[VideoErrors]:
        """The videos by rising quality; of equal ones, that with more errors comes first."""
        return sorted(self.videos, key=lambda video: (video.quality, -video.number))

    @property
    def identities(self) -> dict[str, int]:
        """Objects that are split, results that merge objects, pairs of objects that are swapped."""
        return {
            kind: sum(len(getattr(video.identities, kind)) for video in self.videos)
            for kind in ("split", "merged", "swapped")
        }

    def confusions(self) -> list[tuple[int, int, int]]:
        """Pairs of an object's class and a result's, with how often; the most frequent first."""
        pairs = self.confusion[:-1, :-1].copy()
        np.fill_diagonal(pairs, 0)
        found = zip(*(part.tolist() for part in np.nonzero(pairs)), strict=True)
        return sorted(
            ((row, column, int(pairs[row, column])) for row, column in found),
            key=lambda entry: -entry[2],
        )

    def lines(self, names: Sequence[str]) -> Iterator[str]:
        """The counts as lines of text.

        Args:
            names: Of the classes.
        """
        results = sum(self.results.values()) - self.results.get("ignored", 0)
        objects = sum(self.objects.values()) - self.objects.get("crowd", 0)
        scores = [float(s.max()) for v in self.videos if len(s := v.comparison.scores)]
        best = f" (the highest is {max(scores):.2f})" if scores and not results else ""
        least = f"{self.threshold:g}{best}"
        yield f"errors of {results} results with a score from {least}, {objects} objects"
        yield f"{'':14s}{'results':>8s}{'objects':>8s}{'dAP50':>9s}{'dAP':>9s}"
        right = self.results.get("correct", 0), self.objects.get("found", 0)
        yield f"{'correct':14s}{right[0]:8d}{right[1]:8d}"
        for kind in ERRORS:
            counts = "".join(
                f"{counted[kind]:8d}" if kind in counted else f"{'':8s}"
                for counted in (self.results, self.objects)
            )
            cost = self.costs[kind]
            yield f"{kind:14s}{counts}{cost.ap50:+9.4f}{cost.ap:+9.4f}"
        yield ", ".join(f"{kind} {number}" for kind, number in self.identities.items())
        if common := self.confusions()[:_NAMED]:
            yield "confused most: " + ", ".join(
                f"{names[row]} taken for {names[column]} {number}" for row, column, number in common
            )


def count_errors(
    data: YouTubeVIS, comparisons: Sequence[Comparison], threshold: float
) -> ErrorCounts:
    """Counts the errors of the results from a score of `threshold` on.

    Args:
        data: Ground truth.
        comparisons: From `compare`.
        threshold: 0 to 1.
    """
    results: Counter[str] = Counter({"correct": 0, **dict.fromkeys(ERRORS[:-1], 0), "ignored": 0})
    objects: Counter[str] = Counter(dict.fromkeys(("found", "class", "localisation", "missed"), 0))
    nothing = data.num_classes
    confusion = np.zeros((nothing + 1, nothing + 1), dtype=np.int64)
    videos = []
    for comparison in comparisons:
        iou = float(IOU_THRESHOLDS[0])
        kinds = find_kinds(comparison, match(comparison)[0], iou, threshold)
        videos.append(VideoErrors(comparison, kinds, find_identities(comparison, threshold)))
        results.update(kinds.results[kinds.results != "left out"].tolist())
        objects.update(kinds.objects.tolist())
        truth_labels = np.append(comparison.truth_labels, nothing)
        right_place = np.isin(kinds.results, ("correct", "class"))
        about = np.where(right_place, kinds.about, -1)
        counted = right_place | np.isin(kinds.results, ("localisation", "both", "background"))
        np.add.at(confusion, (truth_labels[about[counted]], comparison.labels[counted]), 1)
        # "Class" is always the kind of an object that some result is at.
        open_ = np.isin(kinds.objects, ("missed", "localisation"))
        open_[kinds.about[kinds.results == "class"]] = False
        confusion[:, nothing] += np.bincount(truth_labels[:-1][open_], minlength=nothing + 1)
    costs = measure_costs(data, comparisons)
    return ErrorCounts(threshold, results, objects, confusion, costs, tuple(videos))
