"""What reads JSON: dataset, results, masks, log and config."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from defvis.config import Config
from defvis.config_io import flatten, override
from defvis.data import rle
from defvis.data.dataset import YouTubeVIS
from defvis.data.read_json import read_json
from defvis.data.ytvis import load
from defvis.decoding.errors import DataError
from defvis.errors.counts import count_errors
from defvis.errors.words import describe
from defvis.evaluation.ap import average_precision
from defvis.evaluation.comparison import compare
from defvis.evaluation.id_switches import measure_id_switches
from defvis.evaluation.results import ResultError, check_results, load_results
from defvis.training import log
from tests.examples.data.small_dataset import CONTENT
from tests.examples.fuzz.hostile import VALUES, Choices, mutated


def _write(value: Any, folder: Path) -> Path:
    path = folder / "file.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def raw_json(data: bytes, folder: Path) -> None:
    """`read_json` on any bytes, next to `json.loads`."""
    path = folder / "file.json"
    path.write_bytes(data)
    for kind in (dict, list):
        try:
            found = read_json(path, kind, DataError)
        except DataError:
            continue
        assert isinstance(found, kind)
        assert repr(found) == repr(json.loads(data))


def _by_pycocotools(mask: rle.RLE) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, about pycocotools
        return coco_mask.decode(mask)


def check_dataset(data: YouTubeVIS) -> None:
    """What holds for every dataset that `load` returns."""
    assert len(set(data.category_ids)) == len(data.category_ids) == len(data.category_names)
    assert all(type(number) is int for number in data.category_ids)
    assert all(type(name) is str for name in data.category_names)
    for video in data.videos:
        assert type(video.id) is int
        assert video.length > 0
        for track in video.tracks:
            assert type(track.id) is int
            assert 0 <= track.label < data.num_classes
            assert len(track.masks) == len(track.areas) == video.length
            assert all(a is None or (a >= 0 and math.isfinite(a)) for a in track.areas)
            for mask in track.masks:
                if mask is not None:
                    assert mask["size"] == [video.height, video.width]
                    if video.height * video.width < 10**6:
                        pixels = rle.decode(mask)
                        assert pixels.shape == (video.height, video.width)
                        assert (pixels == _by_pycocotools(mask)).all()
                        assert pixels.sum() == rle.area(mask)


def _compare(data: YouTubeVIS, content: Any) -> None:
    """What was read says the same as the file."""
    rows = sorted(content["categories"], key=lambda row: row["id"])
    assert data.category_ids == tuple(row["id"] for row in rows)
    named = [(row.get("name"), str(int(row["id"]))) for row in rows]
    assert data.category_names == tuple(
        number if name in (None, "") else str(name) for name, number in named
    )
    assert [video.id for video in data.videos] == [row["id"] for row in content["videos"]]
    tracks = {track.id: (video, track) for video in data.videos for track in video.tracks}
    rows = content.get("annotations") or []
    assert len(tracks) == len(rows)
    for row in rows:
        video, track = tracks[row["id"]]
        assert video.id == row["video_id"]
        assert data.category_ids[track.label] == row["category_id"]
        assert track.is_crowd == (row.get("iscrowd") == 1)
        for mask, area, segmentation, stated in zip(
            track.masks,
            track.areas,
            row["segmentations"],
            row.get("areas") or [None] * video.length,
            strict=True,
        ):
            pixels = _slow_pixels(segmentation, video.height, video.width)
            assert pixels is None or pixels.sum() == (0 if mask is None else rle.area(mask))
            counted = None if mask is None else rle.area(mask)
            too_large = stated is not None and stated > video.height * video.width
            assert area == (counted if stated is None or too_large else stated)


def dataset(data: bytes, folder: Path) -> None:
    """`load` on a good dataset with changed values."""
    content = mutated(CONTENT, Choices(data))
    path = _write(content, folder)
    try:
        loaded = load(path, folder)
    except DataError:
        return
    check_dataset(loaded)
    _compare(loaded, content)


RESULTS: list[dict[str, Any]] = [
    {"video_id": 7, "category_id": 40, "score": 0.5,
     "segmentations": [{"size": [6, 8], "counts": "06Z1"}, None, {"size": [6, 8], "counts": [48]}]},
    {"video_id": 7, "category_id": 3, "score": 0.25, "first_frame": 1,
     "segmentations": [{"size": [6, 8], "counts": [40, 8]}, {"size": [6, 8], "counts": "06Z1"}]},
]  # fmt: skip


@functools.cache
def _truth(folder: Path) -> YouTubeVIS:
    return load(_write(CONTENT, folder), folder)


def results(data: bytes, folder: Path) -> None:
    """`check_results` and all that is measured, on changed results or with a changed truth."""
    choices = Choices(data)
    truth = _truth(folder)
    if choices.number(2):
        try:
            truth = load(_write(mutated(CONTENT, choices), folder), folder)
        except DataError:
            return
    path = _write(mutated(RESULTS, choices), folder)
    try:
        entries = load_results(path)
        check_results(truth, entries)
    except ResultError:
        return
    comparisons = compare(truth, entries)
    for figure in average_precision(truth, comparisons).figures.values():
        assert figure == -1 or 0 <= figure <= 1
    counts = count_errors(truth, comparisons, 0.3)
    for video in counts.videos:
        assert len(list(describe(video, truth.category_names))) >= video.number
    if any(track.present and not track.is_crowd for v in truth.videos for track in v.tracks):
        switches = measure_id_switches(comparisons)
        assert 0 <= switches.one_result <= switches.best_per_frame <= 1
        str(switches)


def masks(data: bytes, folder: Path) -> None:
    """`to_rle` and `decode` next to slow readings of the format."""
    choices = Choices(data)
    height, width = 1 + choices.number(9), 1 + choices.number(9)
    form = choices.number(3)
    segmentation: Any
    if form == 0:
        counts: Any = bytes(48 + byte % 66 for byte in choices.left)
        segmentation = {"size": [height, width], "counts": counts.decode("ascii")}
    elif form == 1:
        counts = [choices.number(40) - 2 for _ in range(choices.number(8))]
        counts.append(height * width - sum(counts))
        segmentation = {"size": [height, width], "counts": counts}
    else:
        segmentation = [
            [choices.number(200) / 4 - 10 for _ in range(choices.number(11))]
            for _ in range(choices.number(3))
        ]
    if choices.number(4) == 3:
        segmentation = mutated(segmentation, choices)
    try:
        read = rle.to_rle(segmentation, height, width)
    except ValueError:
        read = None
        assert _slow_pixels(segmentation, height, width) is None
    else:
        pixels = np.zeros((height, width), bool) if read is None else rle.decode(read)
        expected = _slow_pixels(segmentation, height, width)
        if isinstance(segmentation, list):
            expected = np.zeros((height, width), bool)
            for polygon in (polygon for polygon in segmentation if len(polygon) >= 6):
                (drawn,) = coco_mask.frPyObjects([polygon], height, width)
                expected |= _by_pycocotools(drawn) == 1
        assert expected is None or np.array_equal(pixels, expected)
    if read is not None:
        assert pixels.any()
        assert (pixels == _by_pycocotools(read)).all()
        assert rle.to_rle(rle.to_json(read), height, width) == read


def _slow_pixels(segmentation: Any, height: int, width: int) -> NDArray[np.bool_] | None:
    """What run lengths mean, pixel by pixel; None for what are no run lengths of this size."""
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return None
    runs = segmentation.get("counts")
    if isinstance(runs, str):
        runs = _slow_runs(runs)
    if not isinstance(runs, list) or not runs or any(type(run) is not int for run in runs):
        return None
    if min(runs) < 0 or sum(runs) != height * width:
        return None
    pixels = [index % 2 == 1 for index, run in enumerate(runs) for _ in range(run)]
    return np.array(pixels).reshape(width, height).T


def _slow_runs(text: str) -> list[int] | None:
    """COCO's text of run lengths, character by character; None if it is none."""
    runs: list[int] = []
    value = place = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or place > 25:
            return None
        value |= (digit & 31) << place
        place += 5
        if digit < 32:
            value -= (digit & 16) << (place - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = place = 0
    return None if place else runs


def log_lines(data: bytes, folder: Path) -> None:
    """`log.read` on lines of a log with changed values and bytes."""
    choices = Choices(data)
    row = {"kind": "train", "stage": "joint", "step": 3, "total": 1.5}
    lines = [json.dumps(mutated(row, choices)).encode() for _ in range(1 + choices.number(3))]
    path = folder / "log.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" + choices.left)
    for found in log.read(path):
        assert {"kind", "stage", "step"} <= set(found)


def config(data: bytes, folder: Path) -> None:
    """`Config.from_dict` and `override` with changed values."""
    choices = Choices(data)
    leaves = flatten(Config().to_dict())
    if choices.number(2):
        path, value = choices.pick(list(leaves)), choices.pick(VALUES)
        text = value if isinstance(value, str) else json.dumps(value)
        with contextlib.suppress(ValueError):
            changed = override(Config(), f"{path}={text}")
            _check_config(changed)
    with contextlib.suppress(ValueError):
        _check_config(Config.from_dict(mutated(Config().to_dict(), choices)))


def _check_config(found: Config) -> None:
    """A config that was accepted has the types of the default one and survives its own JSON."""
    text = json.dumps(found.to_dict())
    assert repr(Config.from_dict(json.loads(text))) == repr(found)
    default = flatten(Config().to_dict())
    for name, value in flatten(found.to_dict()).items():
        kind = type(default[name])
        assert type(value) is kind or (kind is float and type(value) is int), (name, value)


TARGETS = {
    "raw_json": raw_json,
    "dataset": dataset,
    "results": results,
    "masks": masks,
    "log": log_lines,
    "config": config,
}
