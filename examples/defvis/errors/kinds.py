"""What kinds of errors results have, over whole videos, and what each kind costs in AP.

The kinds are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020), with tracks in the place of boxes: IoU is that of `Overlaps.video_iou`, summed
over all frames. Results are matched as for AP, by falling score; a result that is matched with a
crowd is `ignored`. What is left without a match, crowds aside, has the first kind that fits:

- `localisation`: of the highest IoU with objects of its class, at least 0.1 but too low;
- `class`: of a high enough IoU with an object of another class;
- `duplicate`: of a high enough IoU with an object of its class, which a higher score has found;
- `background`: no object has an IoU of 0.1;
- `both`: an object of another class has one, which is too low.

High enough is 0.5 where errors are counted, and each of IOU_THRESHOLDS for what they cost in AP.
An object that no result found is of the kind, `class` or `localisation`, of the result with the
highest score that would find it if that were mended, and `missed` if there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defvis.data.dataset import YouTubeVIS
from defvis.evaluation.ap import IOU_THRESHOLDS, match, precision_and_recall
from defvis.evaluation.comparison import Comparison, Indices

# What can be wrong with a result or an object, in the order in which it is shown.
ERRORS = ("class", "localisation", "both", "duplicate", "background", "missed")
# An object of less IoU is not what a result is about.
BACKGROUND = 0.1
_Kinds = NDArray[np.str_]


@dataclass(frozen=True)
class Kinds:
    """The kinds of the results and objects of one video.

    Attributes:
        results: "correct", "ignored" or one of ERRORS but "missed", [D].
        objects: "found", "class", "localisation", "missed", or "crowd", [G].
        about: Object that each result has found, finds again, or overlaps most of those that its
            kind speaks of, [D]; -1 for none.
        finder: Result that found each object or would find it, [G]; -1 for none.
    """

    results: _Kinds
    objects: _Kinds
    about: Indices
    finder: Indices


def find_kinds(
    comparison: Comparison, matched: Indices, threshold: float, least_score: float = -np.inf
) -> Kinds:
    """Says what kind of error each result and each object is.

    Args:
        comparison: The video.
        matched: The object that each result is matched with at `threshold`, [D], from `ap.match`.
        threshold: IoU, above BACKGROUND, to 1.
        least_score: Results of less score are taken as not there; their kind is "left out".
    """
    crowd, labels, chosen = comparison.crowd, comparison.labels, comparison.scores >= least_score
    matched = np.where(chosen, matched, -1)
    iou = np.concatenate((np.where(crowd, 0, comparison.iou), np.zeros((len(labels), 1))), axis=1)
    is_own = labels[:, None] == np.append(comparison.truth_labels, -1)
    own, other = np.where(is_own, iou, 0), np.where(is_own, 0, iou)
    best_own, best_other = own.max(1), other.max(1)
    crowd_or_none = np.append(crowd, False)
    conditions = {
        "left out": ~chosen,
        "ignored": crowd_or_none[matched],
        "correct": matched >= 0,
        "localisation": (best_own >= BACKGROUND) & (best_own < threshold),
        "class": best_other >= threshold,
        "duplicate": best_own >= threshold,
        "background": best_other < BACKGROUND,
    }
    results = np.select(list(conditions.values()), list(conditions), "both")
    by_kind = {
        "correct": matched,
        "class": other.argmax(1),
        "both": other.argmax(1),
        "localisation": own.argmax(1),
        "duplicate": own.argmax(1),
    }
    about = np.select([results == kind for kind in by_kind], list(by_kind.values()), -1)

    objects = np.where(crowd, "crowd", "missed").astype(results.dtype)
    finder = np.full(len(crowd), -1)
    names = {"correct": "found", "class": "class", "localisation": "localisation"}
    # What is written last stays: of the correct results, else of the others, the highest score.
    candidates = np.flatnonzero(np.isin(results, list(names)))
    is_correct = results[candidates] == "correct"
    order = np.lexsort((-candidates, comparison.scores[candidates], is_correct))
    for index in candidates[order].tolist():
        finder[about[index]] = index
        objects[about[index]] = names[str(results[index])]
    return Kinds(results, objects, about, finder)


@dataclass(frozen=True)
class Cost:
    """How much AP would rise if all errors of one kind were mended, from -1 to 1."""

    ap50: float
    ap: float


def measure_costs(data: YouTubeVIS, comparisons: Sequence[Comparison]) -> dict[str, Cost]:
    """What each of ERRORS costs in AP, of results of any score, as AP counts them.

    Mended is done as in TIDE. The result that would find an object that no other finds is made to
    find it, for errors of kind `class` and `localisation`; results of all other errors are taken
    away, and objects that are missed. What is mended at an IoU threshold is what is wrong at it. A
    class left without any object, because all were missed, has AP 1.
    """
    matched = [match(comparison) for comparison in comparisons]
    tables = [
        _Table(
            data,
            comparisons,
            [
                find_kinds(comparison, rows[index], float(threshold))
                for comparison, rows in zip(comparisons, matched, strict=True)
            ],
        )
        for index, threshold in enumerate(IOU_THRESHOLDS)
    ]
    before = np.array([table.ap("") for table in tables])
    costs = {}
    for kind in ERRORS:
        gain = np.array([table.ap(kind) for table in tables]) - before
        costs[kind] = Cost(float(gain[0]), float(gain.mean()))
    return costs


class _Table:
    """All results of all videos, with their kinds at one IoU threshold."""

    def __init__(
        self, data: YouTubeVIS, comparisons: Sequence[Comparison], found_kinds: Sequence[Kinds]
    ) -> None:
        kinds, mended, truths, missed = [], [], [], []
        for comparison, found in zip(comparisons, found_kinds, strict=True):
            truth_labels = comparison.truth_labels
            # The class as which a result finds an object if it is mended; -1 if it is superfluous.
            label = np.full(len(found.results), -1)
            open_ = np.isin(found.objects, ("class", "localisation"))
            label[found.finder[open_]] = truth_labels[open_]
            mended.append(label)
            kinds.append(found.results)
            truths.append(truth_labels[~comparison.crowd])
            missed.append(truth_labels[found.objects == "missed"])
        self._classes = data.num_classes
        self._kinds = np.concatenate([np.zeros(0, dtype=str), *kinds])
        self._mended = np.concatenate([np.zeros(0, dtype=int), *mended])
        self._labels = np.concatenate([np.zeros(0, dtype=int), *(c.labels for c in comparisons)])
        self._scores = np.concatenate([np.zeros(0), *(c.scores for c in comparisons)])
        self._truths, self._missed = (
            np.bincount(np.concatenate([np.zeros(0, dtype=int), *labels]), minlength=self._classes)
            for labels in (truths, missed)
        )

    def ap(self, kind: str) -> float:
        """AP with the errors of one kind mended, or of none; 0 without any object."""
        of_kind = self._kinds == kind
        mended = of_kind & (self._mended >= 0)
        kept = ~of_kind | mended
        labels = np.where(mended, self._mended, self._labels)
        hit = (self._kinds == "correct") | mended
        ignored = self._kinds == "ignored"
        figures = []
        for label in np.flatnonzero(self._truths).tolist():
            truths = int(self._truths[label] - (kind == "missed") * self._missed[label])
            if not truths:
                figures.append(1.0)
                continue
            chosen = kept & (labels == label)
            precision, _ = precision_and_recall(
                self._scores[chosen], hit[None, chosen], ignored[None, chosen], truths
            )
            figures.append(float(precision.mean()))
        return float(np.mean(figures)) if figures else 0.0
