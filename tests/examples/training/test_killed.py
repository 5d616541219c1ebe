"""A run killed with SIGKILL in the middle goes on to the very same weights."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from defvis.config import Config
from defvis.data.ytvis import find_files, load
from defvis.pretrained.checkpoint_file import load_checkpoint
from defvis.training import log
from defvis.training.trainer import Trainer
from tests.examples.support import TINY_RUN, as_words, launch

STEPS = 30


@pytest.fixture
def killed(digits: Path, tmp_path: Path) -> Path:
    """The folder of a run killed once it had taken a dozen steps of the joint stage."""
    out = tmp_path / "killed"
    settings = [
        *TINY_RUN, "model.num_points=4", "model.dropout=0.1", "model.num_slots=8",
        "data.paste=0.5", f"steps={STEPS}", "eval_every=8",
        "backbone_stage.steps=2", "checkpoint_every=5", "data.hue=20.0", "eval_videos=2",
    ]  # fmt: skip
    words = ["--data", str(digits), "--out", str(out), *as_words(settings)]
    process = launch("train_defvis.py", *words)
    deadline = time.monotonic() + 280
    while process.poll() is None and time.monotonic() < deadline:
        rows = log.read(out / "log.jsonl") if (out / "log.jsonl").exists() else []
        if rows and (rows[-1]["stage"], rows[-1]["step"] >= 12) == ("joint", True):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    return out


def test_killed_run_goes_on_bit_exactly(killed: Path, digits: Path, tmp_path: Path) -> None:
    saved = load_checkpoint(killed / "checkpoint.pt")
    assert saved["stage"] == "joint"
    assert 10 <= saved["step"] < STEPS
    assert not (killed / "metrics.json").exists()
    config = Config.from_dict(json.loads((killed / "config.json").read_text()))
    data = [load(*find_files(digits / split)) for split in ("train", "val")]
    whole = Trainer(config, *data, tmp_path / "whole", progress=False).train()

    # What a disk may do to the newest checkpoint: it is reported and the one before it used.
    newest = killed / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt.*using .*previous"):
        trainer = Trainer(config, *data, killed, resume=True, progress=False)
    assert trainer.train() == whole

    folders = (tmp_path / "whole", killed)
    first, second = (load_checkpoint(folder / "checkpoint.pt") for folder in folders)
    for kind in ("model", "average"):
        a, b = (s["model"] if kind == "model" else s["state"]["average"]["model"]
                for s in (first, second))  # fmt: skip
        for name in a:
            assert a[name].equal(b[name]), f"{kind}: {name}"
    for key in ("exp_avg", "exp_avg_sq"):
        for a, b in zip(first["state"]["optimizer"]["state"].values(),
                        second["state"]["optimizer"]["state"].values(), strict=True):  # fmt: skip
            assert a[key].equal(b[key])
    assert first["random"][0]["cpu"].equal(second["random"][0]["cpu"])
    rows = [log.read(folder / "log.jsonl") for folder in folders]
    for row, other in zip(*rows, strict=True):
        for key in ("kind", "stage", "step", "AP" if row["kind"] == "val" else "total"):
            assert row[key] == other[key]
    assert len(rows[0]) == 2 + STEPS + STEPS // 8 + 1
    assert newest.with_name("checkpoint.pt.broken").exists()
