"""Video AP on random sets against two programs that share no code with it.

One is TrackEval, where it is installed, with the settings in which its definition agrees with
ytvoseval's: the same thresholds and area ranges, no crowds, and track ids that start at 1 (the
track with id 0 never counts as taken there). The other is written here from the definition, on
dense masks, with crowds.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defvis.data.ytvis import load
from defvis.evaluation.ap import evaluate

SIDE, FRAMES, CLASSES = 320, 4, 3
AREAS = {"": (0, 1e10), "s": (0, 128**2), "m": (128**2, 256**2), "l": (256**2, 1e10)}


def _track(random: np.random.Generator, near: np.ndarray | None) -> np.ndarray:
    """Rectangles [T, 4] as (left, top, right, bottom), beside another track's if there is one."""
    if near is None:
        side = random.choice([60, 150, 300]) * random.uniform(0.8, 1.05, 2)
        corner = random.uniform(0, SIDE - side) + random.uniform(-4, 4, (FRAMES, 1))
        near = np.concatenate((corner, corner + side), axis=1)
    else:
        near = near + random.normal(0, random.choice([0.0, 3.0, 12.0]), near.shape)
    boxes = near.round().astype(int).clip(0, SIDE)
    boxes[random.random(FRAMES) < 0.2] = 0
    return boxes


def _runs(box: np.ndarray) -> dict[str, Any] | None:
    """Uncompressed run lengths of a rectangle, column by column."""
    left, top, right, bottom = box.tolist()
    if right <= left or bottom <= top:
        return None
    column = [bottom - top, SIDE - bottom + top] * (right - left)
    first = left * SIDE + top
    runs = [first, *column[:-1]]
    return {"size": [SIDE, SIDE], "counts": [*runs, SIDE * SIDE - sum(runs)]}


def _compressed(box: np.ndarray) -> dict[str, Any] | None:
    from pycocotools import mask as coco_mask

    runs = _runs(box)
    if runs is None:
        return None
    encoded = coco_mask.frPyObjects(runs, SIDE, SIDE)
    return {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()}


def _random_set(
    seed: int, crowds: bool
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, list[Any]]]:
    """Ground truth file, results, and both once more as rectangles for the dense oracle."""
    random = np.random.default_rng(seed)
    videos, annotations, results = [], [], []
    rectangles: dict[str, list[Any]] = {"truth": [], "found": []}
    for video in range(1, 6):
        names = [f"v{video}/{frame}.jpg" for frame in range(FRAMES)]
        videos.append({"id": video, "width": SIDE, "height": SIDE, "length": FRAMES,
                       "file_names": names})  # fmt: skip
        truths = []
        for _ in range(random.integers(0, 6)):
            boxes, label = _track(random, None), int(random.integers(CLASSES - 1))
            truths.append((boxes, label))
            masks = [_runs(box) for box in boxes]
            areas = [None if m is None else sum(m["counts"][1::2]) for m in masks]
            crowd = int(crowds and random.random() < 0.3)
            annotations.append({"id": len(annotations) + 1, "video_id": video, "iscrowd": crowd,
                                "category_id": label + 1, "width": SIDE, "height": SIDE,
                                "length": FRAMES, "segmentations": masks,
                                "areas": areas})  # fmt: skip
            rectangles["truth"].append((video, label, boxes, crowd))
        for _ in range(random.integers(0, 15)):
            boxes, label = _track(random, None), int(random.integers(CLASSES))
            if truths and random.random() < 0.8:
                near, label = truths[random.integers(len(truths))]
                boxes = _track(random, near)
            score = round(float(random.random()), 1)  # with ties
            results.append({"video_id": video, "category_id": label + 1, "score": score,
                            "segmentations": [_compressed(box) for box in boxes]})  # fmt: skip
            rectangles["found"].append((video, label, boxes, score))
    categories = [{"id": label + 1, "name": f"class{label}"} for label in range(CLASSES)]
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    return content, results, rectangles


def _figures(content: dict[str, Any], results: list[Any], folder: Path) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(content))
    return evaluate(load(folder / "instances.json", folder), results).figures


@pytest.mark.parametrize("seed", range(4))
def test_equals_trackeval(seed: int, tmp_path: Path) -> None:
    trackeval = pytest.importorskip("trackeval", reason="TrackEval is not installed")
    content, results, _ = _random_set(seed, crowds=False)
    found = _figures(content, results, tmp_path)
    truth, tracker = tmp_path / "gt/youtube_vis_val", tmp_path / "tr/youtube_vis_val/ours/data"
    for folder, data in ((truth, content), (tracker, results)):
        folder.mkdir(parents=True)
        (folder / "data.json").write_text(json.dumps(data))
    settings = {"GT_FOLDER": str(tmp_path / "gt") + "/", "SPLIT_TO_EVAL": "val",
                "TRACKERS_FOLDER": str(tmp_path / "tr") + "/", "PRINT_CONFIG": False}  # fmt: skip
    expected: dict[str, float] = {}
    for limit in (100, 1, 10):
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = trackeval.datasets.YouTubeVIS(settings)
            dataset.global_tid_counter = 1
            metric = trackeval.metrics.TrackMAP({
                "AREA_RANGES": [list(AREAS[name]) for name in "sml"],
                "AREA_RANGE_LABELS": list("sml"), "USE_TIME_RANGES": False,
                "IOU_THRESHOLDS": np.linspace(0.5, 0.95, 10), "MAX_DETECTIONS": limit,
                "PRINT_CONFIG": False,
            })  # fmt: skip
            runner = trackeval.Evaluator({
                "USE_PARALLEL": False, "PRINT_RESULTS": False, "PRINT_CONFIG": False,
                "TIME_PROGRESS": False, "OUTPUT_SUMMARY": False, "OUTPUT_DETAILED": False,
                "PLOT_CURVES": False, "OUTPUT_EMPTY_CLASSES": False,
                "BREAK_ON_ERROR": True, "LOG_ON_ERROR": None,
            })  # fmt: skip
            outcome, _ = runner.evaluate([dataset], [metric])
        averaged = outcome["YouTubeVIS"]["ours"]["COMBINED_SEQ"]["cls_comb_cls_av"]["TrackMAP"]
        expected[f"AR{limit}"] = float(np.mean(averaged["AR_all"]))
        if limit == 100:
            expected |= {f"A{kind}{size}": float(np.mean(averaged[f"A{kind}_{size}"]))
                         for kind in "PR" for size in "sml"}  # fmt: skip
            by_threshold = averaged["AP_all"]
            expected |= {"AP": float(by_threshold.mean()), "AP50": float(by_threshold[0]),
                         "AP75": float(by_threshold[5])}  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definition_on_dense_masks(seed: int, tmp_path: Path) -> None:
    content, results, rectangles = _random_set(seed, crowds=seed % 2 == 0)
    found = _figures(content, results, tmp_path)
    thresholds = np.linspace(0.5, 0.95, 10).tolist()
    for size, limits in AREAS.items():
        curves = [_curve(rectangles, t, label, limits, 100)
                  for t in thresholds for label in range(CLASSES)]  # fmt: skip
        known = [curve for curve in curves if curve is not None]
        wanted = np.mean([curve[0] for curve in known]) if known else -1
        assert found[f"AP{size}"] == pytest.approx(wanted, abs=1e-12), f"AP{size}"
        recall = np.mean([curve[1] for curve in known]) if known else -1
        assert found[f"AR{size or 100}"] == pytest.approx(recall, abs=1e-12), f"AR{size}"
    for limit in (1, 10):
        curves = [_curve(rectangles, t, label, AREAS[""], limit)
                  for t in thresholds for label in range(CLASSES)]  # fmt: skip
        recall = np.mean([curve[1] for curve in curves if curve is not None])
        assert found[f"AR{limit}"] == pytest.approx(recall, abs=1e-12)


@functools.cache
def _iou(first: bytes, second: bytes) -> float:
    a, b = (np.frombuffer(boxes, dtype=int).reshape(FRAMES, 4) for boxes in (first, second))
    dense = np.zeros((2, FRAMES, SIDE, SIDE), dtype=bool)
    for masks, boxes in zip(dense, (a, b), strict=True):
        for frame, (left, top, right, bottom) in enumerate(boxes):
            masks[frame, top:bottom, left:right] = True
    union = (dense[0] | dense[1]).sum()
    return float((dense[0] & dense[1]).sum() / union) if union else 0.0


def _area(boxes: np.ndarray) -> float:
    sizes = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
    return float(sizes[sizes > 0].mean()) if sizes.any() else 0.0


def _curve(
    rectangles: dict[str, list[Any]], threshold: float, label: int, limits: Any, limit: int
) -> tuple[float, float] | None:
    """Average precision over 101 recalls and the last recall of one class, or None."""
    low, high = limits
    outcome, truths = [], 0
    for video in range(1, 6):
        wanted = [(boxes, bool(crowd or not low <= _area(boxes) <= high), crowd)
                  for v, c, boxes, crowd in rectangles["truth"]
                  if (v, c) == (video, label)]  # fmt: skip
        truths += sum(not ignored for _, ignored, _ in wanted)
        found = [(boxes, score) for v, c, boxes, score in rectangles["found"]
                 if (v, c) == (video, label)]  # fmt: skip
        found.sort(key=lambda item: -item[1])
        free = list(range(len(wanted)))
        for boxes, score in found[:limit]:
            overlaps = {i: _iou(boxes.tobytes(), wanted[i][0].tobytes()) for i in free}
            fitting = [i for i in free if overlaps[i] >= threshold]
            real = [i for i in fitting if not wanted[i][1]]
            if not fitting:
                if low <= _area(boxes) <= high:
                    outcome.append((score, False))
                continue
            best = max(real or fitting, key=lambda i: (overlaps[i], i))
            if not wanted[best][2]:
                free.remove(best)
            if real:
                outcome.append((score, True))
    if not truths:
        return None
    outcome.sort(key=lambda item: -item[0])
    hits, points = 0, []
    for seen, (_, hit) in enumerate(outcome, start=1):
        hits += hit
        points.append((hits / truths, hits / seen))
    # The same floats as ytvoseval's: a recall of 7/10 reaches 0.7 or falls short of 0.7 + 1e-16.
    steps = np.linspace(0, 1, 101)
    precision = [max((p for r, p in points if r >= step), default=0.0) for step in steps]
    return float(np.mean(precision)), points[-1][0] if points else 0.0
