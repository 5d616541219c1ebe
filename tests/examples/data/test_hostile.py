"""Broken and odd data: each gives a clear error or a right result, never a traceback or a NaN."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from defvis.config import Config, DataConfig
from defvis.data.ytvis import find_files, load
from defvis.datasets.ytvis_writer import SplitWriter
from defvis.training import log
from defvis.training.trainer import Trainer
from tests.examples.support import changed, program

# Frames, height, width, and the side of a square that moves through them (0 for none).
VIDEOS = [
    (1, 33, 47, 9),
    (4, 48, 64, 0),
    (3, 7, 9, 1),
    (40, 21, 30, 8),
    (2, 1, 1, 1),
    (5, 5, 90, 4),
]


def _write(folder: Path) -> None:
    writer = SplitWriter(folder)
    random = np.random.default_rng(0)
    for frames, height, width, side in VIDEOS:
        pixels = random.integers(0, 256, (frames, height, width, 3)).astype(np.uint8)
        masks = np.zeros((1, frames, height, width), dtype=bool)
        for frame in range(frames):
            left = frame % max(1, width - side + 1)
            masks[0, frame, :side, left : left + side] = True
        writer.add(pixels, masks, [{"category_id": 1}])
    writer.close({}, [{"id": 1, "name": "square"}])


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of one to forty frames, of odd sizes down to a pixel, one without any object."""
    root = tmp_path_factory.mktemp("odd")
    for split in ("train", "val"):
        _write(root / split)
    return root


@pytest.mark.parametrize("data", [DataConfig(), DataConfig(short_sides=(20, 31), long_side=40,
                                                           crop=1.0, flip=0.5, hue=9.0)],
                         ids=["plain", "augmented"])  # fmt: skip
def test_odd_videos_are_learned_from_and_predicted(
    odd: Path, config: Config, tmp_path: Path, data: DataConfig
) -> None:
    settings = changed(
        dataclasses.replace(config, data=data), "model.num_classes=1", "backbone_stage.steps=2",
        "backbone_stage.frames_per_step=6", "steps=3", "batch_size=6", "eval_every=0",
        "log_every=1",
    )  # fmt: skip
    train, val = (load(*find_files(odd / split)) for split in ("train", "val"))
    assert [len(video.tracks) for video in val.videos] == [1, 0, 1, 1, 1, 1]
    ap = Trainer(settings, train, val, tmp_path / "run", progress=False).train()
    assert all(0 <= figure <= 1 or figure == -1 for figure in ap.figures.values())
    rows = log.read(tmp_path / "run/log.jsonl")
    losses = [row["total"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 5
    assert all(math.isfinite(loss) for loss in losses)
    for result in json.loads((tmp_path / "run/results.json").read_text()):
        frames, height, width, _ = VIDEOS[result["video_id"] - 1]
        assert len(result["segmentations"]) == frames
        assert all(m is None or m["size"] == [height, width] for m in result["segmentations"])


@pytest.mark.parametrize(("how", "workers"), [("truncated", "1"), ("missing", "0")])
def test_broken_frames_stop_training_with_their_name(
    odd: Path, tmp_path: Path, how: str, workers: str
) -> None:
    root = tmp_path / "data"
    shutil.copytree(odd, root)
    for frame in (root / "train/JPEGImages").rglob("*.jpg"):
        if how == "missing":
            frame.unlink()
        else:
            frame.write_bytes(frame.read_bytes()[:300])
    words = ["--data", str(root), "--out", str(tmp_path / "run"), "--device", "cpu",
             "--set", "steps=1", "--set", f"data.workers={workers}"]  # fmt: skip
    with pytest.raises(SystemExit, match=r"video \d, frame \d+: cannot read .*\.jpg"):
        program("train_defvis")(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set accumulation=0", "accumulation must be at least 1 and at most 2147483647, got 0"),
        ("--set model.num_slots=0", "model.num_slots must be at least 1 and at most"),
        ("--set data.workers=-1", "data.workers must be at least 0 and at most"),
        ("--device nonsense", "--device nonsense cannot be used: use cpu"),
        ("--steps 5", "unknown argument --steps; use --set steps=VALUE"),
        ("--flip=0.5", "unknown argument --flip=0.5; use --set data.flip=VALUE"),
        ("--wings 2", "unknown argument --wings; --set FIELD=VALUE changes a number"),
    ],
)
def test_wrong_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    common = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        program("train_defvis")([*common, *words.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
