"""The profile of a step: its parts add up, and it leaves a run in the folder alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from defvis.config import Config
from defvis.data.clips import ClipDataset, FrameCache, collate
from defvis.data.ytvis import find_files, load
from defvis.models.model import DefVIS
from defvis.training import profiling
from defvis.training.distributed import World
from defvis.training.profiling import profile
from defvis.training.stages import JointStage
from tests.examples.support import program


def test_parts_add_up(digits: Path) -> None:
    config = Config()
    data = load(*find_files(digits / "train"))
    clips = ClipDataset(data, 2, config.data, 0, FrameCache(1))
    model = DefVIS(config.model).train()
    stage = JointStage(model, config, 24, World())
    batches = (collate([clips[0, index]]) for index in range(9))
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    measured = profile(stage, model, batches, 3, torch.device("cpu"))
    assert sum(measured.seconds.values()) == pytest.approx(measured.step)
    assert all(seconds >= 0 for seconds in measured.seconds.values())
    for name in ("data", "backbone", "encoder", "decoder", "mask_head", "losses", "optimiser"):
        assert name in measured.seconds
    assert measured.seconds["backward"] > measured.seconds["project"]
    assert measured.peak_megabytes > 50
    assert not any(module._forward_hooks for module in model.modules())
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert not before.equal(after), "it measures real steps"
    with pytest.raises(ValueError, match=f"steps must be 1 to {config.steps - 2}, got 0"):
        profile(stage, model, batches, 0, torch.device("cpu"))


def test_program(digits: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = sorted(tiny_run.iterdir())
    program("train_defvis")(["--data", str(digits), "--out", str(tiny_run), "--profile", "1",
                             "--device", "cpu", "--set", "batch_size=1", "--set",
                             "model.num_frames=2"])  # fmt: skip
    shown = capsys.readouterr().out
    assert "backward" in shown
    assert "peak memory" in shown
    assert sorted(tiny_run.iterdir()) == written


def test_memory_in_the_units_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    here = profiling._peak_megabytes(torch.device("cpu"))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert here / profiling._peak_megabytes(torch.device("cpu")) == pytest.approx(2**10, rel=0.1)
