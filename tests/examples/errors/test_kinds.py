"""Kinds of errors on cases made by hand, what they cost in AP, and that all adds up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from defvis.data.dataset import YouTubeVIS
from defvis.errors.counts import ErrorCounts, count_errors
from defvis.errors.words import describe, in_frames
from defvis.evaluation.ap import average_precision, evaluate
from defvis.evaluation.comparison import compare
from tests.examples.evaluation.made_tracks import A, B, C, block, dataset, result, track

HALF = block(0, width=2)  # IoU .4 with A


def counted(data: YouTubeVIS, results: list[Any], threshold: float = 0.3) -> ErrorCounts:
    return count_errors(data, compare(data, results), threshold)


@pytest.mark.parametrize(
    ("entry", "kind", "truth", "words"),
    [
        (([A] * 4, 0.9), "correct", "found", None),
        (([A] * 4, 0.9, 1, 11), "class", "class", "object 0 (a) is taken for result 0 (b 0.90)"),
        (([HALF] * 4, 0.9), "localisation", "localisation",
         "object 0 (a) is not covered well by result 0 (a 0.90): IoU 0.40"),
        (([HALF] * 4, 0.9, 1, 11), "both", "missed",
         "result 1 (b 0.90) is near object 0 (a), of another class: IoU 0.40"),
        (([C, None, C, C], 0.9), "background", "missed",
         "result 1 (a 0.90) is where no object is, in frames 0 and 2 to 3"),
        (([A] * 4, 0.29), "left out", "missed", "object 0 (a) is missed: it is in frames 0 to 3"),
    ],
)  # fmt: skip
def test_one_result_for_one_object(entry: Any, kind: str, truth: str, words: str | None) -> None:
    data = dataset([track(1, [A] * 4)], classes=2)
    counts = counted(data, [result(*entry)])
    (video,) = counts.videos
    assert video.kinds.results.tolist() == [kind]
    assert video.kinds.objects.tolist() == [truth]
    said = [line.translate({0x2068: None, 0x2069: None}) for line in describe(video, "ab")]
    assert words in said if words else not said
    assert video.number == (kind not in ("correct", "left out")) + (truth == "missed")


def test_results_of_one_object_and_crowds() -> None:
    data = dataset([track(1, [A] * 4), track(2, [B] * 4, crowd=True)], classes=2)
    results = [
        result([A] * 4, 0.9),
        result([A] * 4, 0.8),
        result([A] * 4, 0.7, category=11),
        result([B] * 4, 0.6),
    ]
    counts = counted(data, results)
    (video,) = counts.videos
    assert video.kinds.results.tolist() == ["correct", "duplicate", "ignored", "class"]
    assert video.kinds.objects.tolist() == ["found", "crowd"]
    assert counts.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert counts.confusions() == [(0, 1, 1)]
    assert video.quality == pytest.approx(2 / (3 + 1))


def test_confusion_and_what_is_printed() -> None:
    data = dataset(
        [track(1, [A] * 4), track(2, [B] * 4, label=1)], [track(3, [C] * 4, label=1)], classes=2
    )
    results = [
        result([A] * 4, 0.9, category=11),
        result([B] * 4, 0.9, category=11),
        result([A] * 4, 0.9, video=2),
    ]
    counts = counted(data, results)
    # Rows a, b, nothing there; columns a, b, not found.
    assert counts.confusion.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
    lines = list(counts.lines(data.category_names))
    assert lines[0] == "errors of 3 results with a score from 0.3, 3 objects"
    # From (0 + 51 / 101 / 2) / 2 to (1 + 51 / 101) / 2.
    assert "class                1       1  +0.6262  +0.6262" in lines
    assert lines[-1] == "confused most: a taken for b 1"
    assert [video.comparison.video.id for video in counts.worst_first] == [2, 1]
    first, *_ = counted(data, results, threshold=0.95).lines(data.category_names)
    assert first == "errors of 0 results with a score from 0.95 (the highest is 0.90), 3 objects"


def test_costs_are_what_mended_results_score() -> None:
    """The mended results are written out, and scored as any others."""
    data = dataset(
        [track(1, [A] * 4), track(2, [B] * 4), track(3, [C] * 4, label=1)],
        [track(4, [A] * 4, label=1), track(5, [C] * 4, label=1)],
        classes=2,
    )
    good = [result([A] * 4, 0.5), result([A] * 4, 0.45, video=2, category=11)]
    wrong_class, right_class = (result([C] * 4, 0.8, category=c) for c in (10, 11))
    again = result([A] * 4, 0.4)
    nowhere = result([B] * 4, 0.95, video=2, category=11)
    poor, well = (result([mask] * 4, 0.9) for mask in (block(5, width=2), B))
    everything = [*good, wrong_class, again, nowhere, poor]
    mended = {
        "class": [*good, right_class, again, nowhere, poor],
        "localisation": [*good, wrong_class, again, nowhere, well],
        "both": everything,
        "duplicate": [*good, wrong_class, nowhere, poor],
        "background": [*good, wrong_class, again, poor],
    }
    before = evaluate(data, everything).figures
    costs = counted(data, everything, threshold=1).costs
    for kind, results in mended.items():
        after = evaluate(data, results).figures
        assert costs[kind].ap50 == pytest.approx(after["AP50"] - before["AP50"]), kind
        # The other results are as good at every threshold.
        assert costs[kind].ap == pytest.approx(after["AP"] - before["AP"]), kind
    found = dataset(data.videos[0].tracks, data.videos[1].tracks[:1], classes=2)  # type: ignore[arg-type]
    after = evaluate(found, everything).figures
    assert costs["missed"].ap50 == pytest.approx(after["AP50"] - before["AP50"])
    assert all(costs[kind].ap50 > 0 for kind in ("class", "localisation", "background", "missed"))


@pytest.mark.parametrize("results", [[], [result([A] * 4, 0.9), result([B] * 4, 0.9)]])
def test_nothing_and_perfection(results: list[Any]) -> None:
    data = dataset([track(1, [A] * 4), track(2, [B] * 4)])
    counts = counted(data, results)
    missing = float(not results)
    assert {kind: (cost.ap50, cost.ap) for kind, cost in counts.costs.items() if cost.ap} == (
        {"missed": (1, 1)} if missing else {}
    )
    assert sum(counts.results.values()) == len(results)
    assert (counts.videos[0].quality, counts.videos[0].number) == (1 - missing, 2 * missing)
    empty = dataset([])
    assert counted(empty, []).videos[0].quality == 1


@pytest.mark.parametrize("seed", range(5))
def test_every_result_and_object_is_of_one_kind(seed: int) -> None:
    random = np.random.default_rng(seed)

    def masks() -> list[Any]:
        left = random.integers(0, 15)
        return [
            None if random.random() < 0.2 else block(left + random.integers(3), height=10)
            for _ in range(4)
        ]

    data = dataset(
        *[[track(i, masks(), int(random.integers(3)), random.random() < 0.2) for i in range(4)]
          for _ in range(6)],
        classes=3,
    )  # fmt: skip
    results = [
        result(masks(), random.random().__round__(1), int(random.integers(1, 7)), 10 + int(c))
        for c in random.integers(0, 3, 80)
    ]
    comparisons = compare(data, results)
    counts = count_errors(data, comparisons, 0.4)
    assert sum(counts.results.values()) == sum(entry["score"] >= 0.4 for entry in results)
    assert sum(counts.objects.values()) == 4 * 6
    assert counts.results["correct"] == counts.objects["found"] == counts.confusion.trace()
    left_out = counts.results["ignored"] + counts.results["duplicate"]
    assert counts.confusion[:, :-1].sum() == sum(counts.results.values()) - left_out
    everything = count_errors(data, comparisons, 0)
    figures = average_precision(data, comparisons).figures
    for name in ("ap50", "ap"):
        for cost in everything.costs.values():
            assert -1e-9 <= getattr(cost, name) <= 1 - figures[name.upper()] + 1e-9
    for video in counts.videos:
        assert 0 <= video.quality <= 1
        assert len(list(describe(video, "abc"))) >= video.number


def test_frames_in_words() -> None:
    assert in_frames([]) == "no frame"
    assert in_frames([7]) == "frame 7"
    assert in_frames([0, 2, 3, 4]) == "frames 0 and 2 to 4"
    assert in_frames(range(0, 12, 2)) == "frames 0, 2, 4, 6 and 2 more ranges"
