"""The log of a run: lines, TensorBoard, curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from defvis.training import log
from defvis.training.plots import draw_curves, label


def test_later_lines_count_and_half_lines_do_not(tmp_path: Path) -> None:
    writer = log.Log(tmp_path, goes_on=False)
    for step, total in ((1, 5.0), (2, 4.0), (2, 3.0)):
        writer.append({"kind": "train", "stage": "joint", "step": step, "total": total})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "sta')  # the process was killed here
    assert [(row["step"], row["total"]) for row in writer.read()] == [(1, 5.0), (2, 3.0)]
    (tmp_path / "empty.jsonl").touch()
    assert log.read(tmp_path / "empty.jsonl") == []
    log.Log(tmp_path, goes_on=True).append({"kind": "val", "stage": "joint", "step": 2})
    assert len(log.read(tmp_path / "log.jsonl")) == 3
    log.Log(tmp_path, goes_on=False)
    assert not (tmp_path / "log.jsonl").exists()


def test_tensorboard_gets_the_same_numbers(tiny_run: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run / "tensorboard"))
    events.Reload()
    rows = log.read(tiny_run / "log.jsonl")
    losses = [row for row in rows if row["kind"] == "train" and row["stage"] == "joint"]
    shown = events.Scalars("train-joint/total")
    assert [(e.step, e.value) for e in shown] == [
        (row["step"], pytest.approx(row["total"])) for row in losses
    ]
    assert events.Scalars("val-joint/AP50")[0].step == 2


def test_without_tensorboard_there_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    log.Log(tmp_path, goes_on=False).append({"kind": "val", "stage": "joint", "step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_rows_tell_speed_and_time_left(tiny_run: Path) -> None:
    rows = [row for row in log.read(tiny_run / "log.jsonl") if row["kind"] == "train"]
    assert rows
    for row in rows:
        unit = "frames" if row["stage"] == "backbone" else "clips"
        assert row[f"{unit} per second"] == pytest.approx(2 / row["seconds per step"])
        assert 0 <= row["waiting for data"] <= 1
        assert row["minutes left"] >= 0


def test_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    row = {"kind": "train", "stage": "joint", "step": 1}
    file = tmp_path / "log.jsonl"
    others = [
        b"null",
        b"3",
        b"[]",
        b"{}",
        b'{"kind": 1, "stage": 1, "step": []}',
        b"\xff",
        b"[" * 9999,
    ]
    file.write_bytes(b"\n".join([*others, json.dumps(row).encode()]))
    assert log.read(file) == [row]


def test_names_in_legends() -> None:
    assert label("K32 é", 0) == "K32 é"
    assert label("细胞", 3) == "number 3"
    figure = Figure()
    axes = figure.subplots()
    for name in ("$a$b$", "_hidden", "细胞"):
        axes.plot([1, 2], label=label(name, 3))
    assert len(axes.legend().get_texts()) == 3
    figure.canvas.draw()


def test_curves_of_a_run_without_validation(tmp_path: Path) -> None:
    rows = [{"kind": "train", "stage": "joint", "step": 1, "minutes": 0.1, "class": 1.0}]
    draw_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500
