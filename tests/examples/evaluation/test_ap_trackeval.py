"""Video AP on random sets against TrackEval, which shares no code with it.

With the settings in which its definition agrees with ytvoseval's: the same thresholds and area
ranges, no crowds, and track ids that start at 1 (the track with id 0 never counts as taken there).
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from defvis.data.ytvis import load
from defvis.evaluation.ap import evaluate

SIDE, FRAMES, CLASSES = 320, 4, 3
AREAS = {"s": [0, 128**2], "m": [128**2, 256**2], "l": [256**2, 1e10]}


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


def _random_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth file and results."""
    random = np.random.default_rng(seed)
    videos, annotations, results = [], [], []
    for video in range(1, 6):
        names = [f"v{video}/{frame}.jpg" for frame in range(FRAMES)]
        videos.append(
            {"id": video, "width": SIDE, "height": SIDE, "length": FRAMES, "file_names": names}
        )
        truths = []
        for _ in range(random.integers(0, 6)):
            boxes, label = _track(random, None), int(random.integers(CLASSES - 1))
            truths.append((boxes, label))
            masks = [_runs(box) for box in boxes]
            areas = [None if m is None else sum(m["counts"][1::2]) for m in masks]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": video,
                    "iscrowd": 0,
                    "category_id": label + 1,
                    "width": SIDE,
                    "height": SIDE,
                    "length": FRAMES,
                    "segmentations": masks,
                    "areas": areas,
                }
            )
        for _ in range(random.integers(0, 15)):
            boxes, label = _track(random, None), int(random.integers(CLASSES))
            if truths and random.random() < 0.8:
                near, label = truths[random.integers(len(truths))]
                boxes = _track(random, near)
            score = round(float(random.random()), 1)  # with ties
            shown = [None if m is None else _compressed(m) for m in map(_runs, boxes)]
            results.append(
                {
                    "video_id": video,
                    "category_id": label + 1,
                    "score": score,
                    "segmentations": shown,
                }
            )
    categories = [{"id": label + 1, "name": f"class{label}"} for label in range(CLASSES)]
    return {"videos": videos, "annotations": annotations, "categories": categories}, results


def _compressed(runs: dict[str, Any]) -> dict[str, Any]:
    encoded = coco_mask.frPyObjects(runs, SIDE, SIDE)
    return {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("seed", range(6))
def test_equals_trackeval(seed: int, tmp_path: Path) -> None:
    trackeval = pytest.importorskip("trackeval", reason="TrackEval is not installed")
    content, results = _random_set(seed)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = evaluate(load(tmp_path / "instances.json", tmp_path), results).figures
    truth, tracker = tmp_path / "gt/youtube_vis_val", tmp_path / "tr/youtube_vis_val/ours/data"
    for folder, data in ((truth, content), (tracker, results)):
        folder.mkdir(parents=True)
        (folder / "data.json").write_text(json.dumps(data))
    settings = {
        "GT_FOLDER": str(tmp_path / "gt") + "/",
        "SPLIT_TO_EVAL": "val",
        "TRACKERS_FOLDER": str(tmp_path / "tr") + "/",
        "PRINT_CONFIG": False,
    }
    expected: dict[str, float] = {}
    for limit in (100, 1, 10):
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = trackeval.datasets.YouTubeVIS(settings)
            dataset.global_tid_counter = 1
            metric = trackeval.metrics.TrackMAP(
                {
                    "AREA_RANGES": list(AREAS.values()),
                    "AREA_RANGE_LABELS": list(AREAS),
                    "USE_TIME_RANGES": False,
                    "IOU_THRESHOLDS": np.linspace(0.5, 0.95, 10),
                    "MAX_DETECTIONS": limit,
                    "PRINT_CONFIG": False,
                }
            )
            runner = trackeval.Evaluator(
                {
                    "USE_PARALLEL": False,
                    "PRINT_RESULTS": False,
                    "PRINT_CONFIG": False,
                    "TIME_PROGRESS": False,
                    "OUTPUT_SUMMARY": False,
                    "OUTPUT_DETAILED": False,
                    "PLOT_CURVES": False,
                    "OUTPUT_EMPTY_CLASSES": False,
                    "BREAK_ON_ERROR": True,
                    "LOG_ON_ERROR": None,
                }
            )
            outcome, _ = runner.evaluate([dataset], [metric])
        averaged = outcome["YouTubeVIS"]["ours"]["COMBINED_SEQ"]["cls_comb_cls_av"]["TrackMAP"]
        expected[f"AR{limit}"] = float(np.mean(averaged["AR_all"]))
        if limit == 100:
            expected |= {
                f"A{kind}{size}": float(np.mean(averaged[f"A{kind}_{size}"]))
                for kind in "PR"
                for size in AREAS
            }
            by_threshold = averaged["AP_all"]
            expected |= {
                "AP": float(by_threshold.mean()),
                "AP50": float(by_threshold[0]),
                "AP75": float(by_threshold[5]),
            }
    assert found == pytest.approx(expected, abs=1e-12)
