"""Video AP: hand-computed cases of every rule, and the checks of results."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from defvis.data.rle import RLE
from defvis.evaluation.ap import evaluate
from defvis.evaluation.comparison import find_overlaps
from defvis.evaluation.results import ResultError, check_results, load_results
from tests.examples.evaluation.made_tracks import A, B, C, block, dataset, result, track


def video_iou(a: dict[int, RLE], b: dict[int, RLE]) -> float:
    return float(find_overlaps([a], [b]).video_iou[0, 0])


def test_video_iou_sums_over_frames() -> None:
    assert video_iou({0: A, 1: A}, {0: A, 1: A}) == 1
    assert video_iou({0: A, 2: A}, {0: A, 3: A}) == pytest.approx(1 / 3)
    assert video_iou({0: A, 1: A}, {0: A, 1: B}) == pytest.approx(1 / 3)
    wide = block(0, width=10)
    assert video_iou({0: A, 1: A}, {0: wide, 1: A}) == pytest.approx((50 + 50) / (100 + 50))
    assert video_iou({}, {}) == 0


def test_entries_that_begin_later_and_end_earlier() -> None:
    """They score as the same masks with a null in every other frame of the video."""
    data = dataset([track(1, [None, None, A, B, None, None])], length=6)
    whole = [result([None, None, A, None, None, None], 0.9)]
    part = {**result([A], 0.9), "first_frame": 2}
    assert evaluate(data, [part]).figures == evaluate(data, whole).figures
    assert evaluate(data, [part]).figures["AR1"] == pytest.approx(0.1)
    (detection,) = check_results(data, [part])[1, 0]
    assert list(detection.masks) == [2]  # no entry for the other frames, however many


def test_half_the_frames_give_iou_one_half() -> None:
    """4 frames of truth, 2 found exactly, 2 null: IoU .5 counts at the threshold .5 alone."""
    figures = evaluate(dataset([track(1, [A] * 4)]), [result([A, A, None, None], 0.9)]).figures
    assert figures["AP"] == pytest.approx(0.1)
    assert figures["AP50"] == pytest.approx(1.0)
    assert figures["AP75"] == 0
    assert figures["AR1"] == pytest.approx(0.1)


def test_perfect_and_empty() -> None:
    data = dataset([track(1, [A] * 4), track(2, [B] * 4)], [track(3, [C] * 4)])
    perfect = [result([A] * 4, 0.9), result([B] * 4, 0.9), result([C] * 4, 0.9, video=2)]
    figures = evaluate(data, perfect).figures
    assert figures["AP"] == pytest.approx(1.0)
    assert figures["AR1"] == pytest.approx(2 / 3), "one detection per video and category"
    assert figures["AR10"] == 1
    nothing = evaluate(data, []).figures
    assert nothing["AP"] == 0
    assert nothing["AR100"] == 0
    assert set(evaluate(dataset([]), []).figures.values()) == {-1}


def test_annotation_id_zero_can_be_found() -> None:
    figures = evaluate(dataset([track(0, [A] * 4)]), [result([A] * 4, 0.5)]).figures
    assert figures["AP"] == pytest.approx(1.0)


def test_crowds_are_ignored_and_absorb_several() -> None:
    data = dataset([track(1, [A] * 4), track(2, [B] * 4, crowd=True)])
    results = [result([B] * 4, 0.9), result([B] * 4, 0.8), result([A] * 4, 0.7)]
    assert evaluate(data, results).figures["AP"] == pytest.approx(1.0)


def test_a_crowd_takes_nothing_from_a_real_object() -> None:
    """The detection fits the crowd exactly and the object by nine tenths of its frames."""
    data = dataset([track(1, [A] * 10, crowd=True), track(2, [A] * 9 + [None])], length=10)
    figures = evaluate(data, [result([A] * 10, 0.9)]).figures
    assert (figures["AP50"], figures["AR1"]) == (pytest.approx(1.0), pytest.approx(0.9))


def test_area_ranges() -> None:
    """Areas come from the annotation; truths and unmatched detections out of range do not count."""
    data = dataset([track(1, [A] * 4, area=200.0**2), track(2, [B] * 4)])
    figures = evaluate(data, [result([A] * 4, 0.9), result([B] * 4, 0.8)]).figures
    assert figures["APs"] == pytest.approx(1.0)
    assert figures["APm"] == pytest.approx(1.0)
    assert figures["APl"] == -1
    missed = evaluate(data, [result([C] * 4, 0.9), result([B] * 4, 0.8)]).figures
    assert missed["APs"] == pytest.approx(0.5)
    assert missed["APm"] == 0


def test_classes_without_truth_do_not_count() -> None:
    data = dataset([track(1, [A] * 4)], classes=3)
    ap = evaluate(data, [result([A] * 4, 0.9), result([B] * 4, 0.9, category=11)])
    assert ap.figures["AP"] == pytest.approx(1.0)
    assert ap.per_class[1:] == (-1, -1)
    data = dataset([track(1, [A] * 4), track(2, [B] * 4, label=1)], classes=2)
    assert evaluate(data, [result([A] * 4, 0.9)]).figures["AP"] == pytest.approx(0.5)


def test_at_most_a_hundred_detections_per_video_and_category() -> None:
    data = dataset([track(1, [A] * 4)])
    many = [result([B] * 4, 0.9)] * 100 + [result([A] * 4, 0.1)]
    assert evaluate(data, many).figures["AR100"] == 0
    assert evaluate(data, many[1:]).figures["AR100"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentations": [None] * 3}, "one entry per frame of video 1, 4, got 3"),
        ({"segmentations": None}, "one entry per frame of video 1, 4, got None"),
        ({"segmentations": [{"size": [3, 3], "counts": [9]}] + [None] * 3}, r"size \[20, 20\]"),
        ({"segmentations": [[[0, 0, 5, 0, 5, 5]]] + [None] * 3}, "frame 0: .* RLE, not polygons"),
        ({"first_frame": 4}, "first_frame must be 0 to 3, got 4"),
        ({"first_frame": -1}, "first_frame must be 0 to 3, got -1"),
        ({"first_frame": True}, "first_frame must be an integer, got True"),
        ({"first_frame": 1}, "at most 3 entries from first_frame 1 on, got 4"),
        ({"first_frame": 3, "segmentations": [{"size": [3, 3], "counts": [9]}]}, "frame 3: .*size"),
        ({"video_id": 9}, "there is no video 9"),
        ({"video_id": [1]}, r"video_id must be an integer, got \[1\]"),
        ({"category_id": 1}, "there is no category 1"),
        ({"score": math.nan}, "score must be a finite number, got nan"),
        ({"score": 10**400}, "score must be a finite number, got 1000"),
        ({"score": True}, "score must be a finite number, got True"),
    ],
)
def test_broken_results_are_refused(change: dict[str, Any], message: str) -> None:
    good = result([A] * 4, 0.5)
    with pytest.raises(ResultError, match=rf"results\[1\].*{message}"):
        evaluate(dataset([track(1, [A] * 4)]), [good, {**good, **change}])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "must be an object, got 3"),
        ({"video_id": 1}, "lacks category_id"),
        ({"image_id": 1, "segmentation": []}, "lacks video_id: it is of COCO's single images"),
        (
            {"video_id": 1, "category_id": 10, "segmentations": []},
            "lacks score: it is an annotation, not a prediction",
        ),
    ],
)
def test_entries_of_another_form_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(ResultError, match=rf"results\[0\] {message}"):
        evaluate(dataset([track(1, [A] * 4)]), [entry])


def test_any_value_in_any_field_is_read_or_refused() -> None:
    data = dataset([track(1, [A] * 4)])
    values = [None, True, 0, -1, 1.0, 2.5, 1e308, 2**70, math.nan, math.inf, "", "1", [], {}, [[]],
              [None] * 4, [[[1, 2], [3, 4]]] * 4, {"size": [20, 20], "counts": "`1"}]  # fmt: skip
    values += [[{"size": [20, 20], "counts": value}] * 4 for value in values]
    read = 0
    for field in ("video_id", "category_id", "score", "segmentations", "first_frame"):
        for value in values:
            with contextlib.suppress(ResultError):
                figures = evaluate(data, [{**result([A] * 4, 0.5), field: value}]).figures
                assert all(math.isfinite(figure) for figure in figures.values())
                read += 1
    assert read > 10


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"videos": [], "annotations": []}')
    with pytest.raises(ResultError, match=r"a list, got dict with the fields .*'annotations'"):
        load_results(file)
    file.write_bytes(json.dumps([{"score": 1}]).encode("utf-16"))
    assert load_results(file) == [{"score": 1}]
