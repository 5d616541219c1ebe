"""Two processes with gloo train as one process with the doubled batch does."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from defvis import log
from defvis.checkpoint import load_checkpoint
from defvis.config import Config
from defvis.data.sampling import EndlessSampler
from defvis.data.ytvis import YouTubeVIS, find_files, load
from defvis.train import Run

# Frozen, because batch norm would see each process's own half; what it is frozen at is no matter.
pytestmark = pytest.mark.filterwarnings("ignore:parts of the backbone are frozen")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# In fp32 sums taken in another order differ by this share of a tensor's largest entry. Half the
# batch would change gradients by tens of percent.
ROUNDING = 2e-4


@pytest.fixture(scope="module")
def together(
    launch: Callable[..., subprocess.Popen[str]], digits: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The folder of a run of two processes, two clips and two frames of each per step."""
    out = tmp_path_factory.mktemp("gloo") / "run"
    settings = [
        "model.embed_dim=24", "model.num_heads=2", "model.num_points=4", "model.num_slots=4",
        "model.feedforward_dim=32", "model.encoder_layers=1", "model.decoder_layers=2",
        "model.backbone.embedding_size=8", "model.backbone.hidden_sizes=[8, 16]",
        "model.backbone.depths=[1, 1]", "backbone_stage.frames_per_step=2", "batch_size=2",
        "model.backbone.frozen_norm=true",
        "optim.warmup_steps=2", "log_every=1", "checkpoint_every=3", "eval_every=3",
    ]  # fmt: skip
    process = launch(
        "train_defvis.py", "--data", str(digits), "--out", str(out), "--steps", "5",
        "--backbone-steps", "2", "--threads", "1", "--device", "cpu",
        *(word for setting in settings for word in ("--set", setting)), module=TORCHRUN,
    )  # fmt: skip
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert shown.count("2 processes on cpu") == 1, "one process speaks"
    return out


def test_two_processes_equal_one_with_twice_the_batch(
    together: Path, digits: Path, tmp_path: Path
) -> None:
    config = Config.from_dict(json.loads((together / "config.json").read_text()))
    stage = dataclasses.replace(config.backbone_stage, frames_per_step=4)
    single = dataclasses.replace(config, batch_size=4, backbone_stage=stage)
    data = [load(*find_files(digits / split)) for split in ("train", "val")]
    Run(single, *data, tmp_path / "run", progress=False).run()

    # The processes see unlike numbers of objects: each normalising by its own would show.
    counts = _objects_by_rank(config, data[0])
    assert len(counts) == 5
    assert any(first != second for first, second in counts)

    rows, wanted = (log.read(folder / "log.jsonl") for folder in (together, tmp_path / "run"))
    assert len(rows) == len(wanted) == 2 + 5 + 2
    for row, other in zip(rows, wanted, strict=True):
        names = {"AP50"} if row["kind"] == "val" else {"total", "dense"}
        if row["kind"] == "train" and row["stage"] == "joint":
            names |= {"class", "l1", "giou", "mask", "dice"}
            assert all(row[name] > 0 for name in names)
        for name in names:
            assert row[name] == pytest.approx(other[name], rel=2e-4, abs=1e-6), (name, row)
    first, second = (load_checkpoint(folder / "checkpoint.pt")
                     for folder in (together, tmp_path / "run"))  # fmt: skip
    assert len(first["random"]) == 2
    # Adam's running mean of the gradient: the weights themselves follow its sign even where it
    # is nothing but rounding.
    states = (s["state"]["optimizer"]["state"].values() for s in (first, second))
    for mine, other in zip(*states, strict=True):
        difference = (mine["exp_avg"] - other["exp_avg"]).abs().max()
        assert difference <= ROUNDING * other["exp_avg"].abs().max() + 1e-6


def _objects_by_rank(config: Config, data: YouTubeVIS) -> list[tuple[int, int]]:
    """Objects in the videos that each of two processes draws for a joint step."""
    drawn = config.steps * config.batch_size * 2
    by_rank = []
    for rank in range(2):
        keys = list(EndlessSampler(len(data.videos), config.seed, 0, drawn, rank, 2))
        objects = [len(data.videos[index].tracks) for _, index in keys]
        steps = range(0, len(objects), config.batch_size)
        by_rank.append([sum(objects[start : start + config.batch_size]) for start in steps])
    return list(zip(*by_rank, strict=True))


def test_other_number_of_processes_is_refused(together: Path, digits: Path) -> None:
    config = Config.from_dict(json.loads((together / "config.json").read_text()))
    data = [load(*find_files(digits / split)) for split in ("train", "val")]
    with pytest.raises(ValueError, match="was written by 2 processes, not 1"):
        Run(config, *data, together, resume=True, progress=False)


def test_no_process_group_is_left_behind() -> None:
    assert "RANK" not in os.environ
    assert not torch.distributed.is_initialized()
