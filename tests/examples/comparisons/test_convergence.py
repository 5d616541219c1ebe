"""Comparing configs: the curves that are read, equal time, and the program on tiny runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import compare_convergence
import pytest
import torch

from defvis.comparisons import convergence
from defvis.comparisons.convergence import Curve, Variant, draw, interpolate, read_curve, to_table
from defvis.config import Config
from defvis.data.dataset import YouTubeVIS
from defvis.training import profiling
from defvis.training.distributed import World
from tests.examples.support import TINY_RUN, as_words, program


def curve(*values: float) -> Curve:
    points = [(100 * (i + 1), value) for i, value in enumerate(values)]
    return Curve(dict.fromkeys(("AP", "AP50", "AP75"), points), [(1, 2.0), (2, 1.0)])


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0.0), (50, 0.1), (100, 0.2), (150, 0.3), (200, 0.4), (999, 0.4)]
)
def test_interpolation(at: float, value: float) -> None:
    assert interpolate([(100, 0.2), (200, 0.4)], at) == pytest.approx(value)


def test_equal_time_is_when_the_fastest_ends() -> None:
    # 200 steps of 0.3 s are one minute, in which the slow one takes 100 steps.
    quick = Variant(10, [0.2, 0.3, 0.9], {0: curve(0.1, 0.2), 1: curve(0.3, 0.4)})
    slow = Variant(20, [0.6], {0: curve(0.5, 0.6)})
    assert quick.total_minutes == 1
    assert slow.at("AP", 1) == [0.5]
    header, _, first, second = to_table({"quick": quick, "slow": slow}).splitlines()
    assert "AP after 1.0 min" in header
    assert first.startswith("| quick | 10 | 0.300 | 2 | 200 | .300 [.200, .400] | ")
    assert second.endswith("| .600 | .600 | .600 | .500 | .500 | .500 |")


def test_warm_up_is_that_of_the_profile() -> None:
    assert compare_convergence.WARM_UP == profiling.WARM_UP


def test_picture(tmp_path: Path) -> None:
    draw({"one": Variant(1, [0.1], {0: curve(0.1, 0.2)})}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_other_videos_are_refused(tmp_path: Path) -> None:
    rows = [
        {"kind": "val", "stage": "joint", "step": step, "videos": videos, "AP": 0.1}
        for step, videos in ((1, 4), (2, 6))
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="different numbers of videos"):
        read_curve(tmp_path)


def test_steps_are_timed_on_the_device_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds: list[World] = []

    class Untrained:
        num_parameters = 7

        def __init__(self, *_: object, world: World, progress: bool) -> None:
            worlds.append(world)

        def profile(self, steps: int) -> SimpleNamespace:
            return SimpleNamespace(step=steps / 10)

    monkeypatch.setattr(convergence, "Trainer", Untrained)
    device = torch.device("cuda", 1)
    data = YouTubeVIS((), (), ())
    found = convergence.measure({"one": Config()}, data, data, 2, 5, device)
    assert found == {"one": (7, [0.5, 0.5])}
    assert [world.device for world in worlds] == [device] * 2


def test_runs_are_trained_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        commands.append(words)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(compare_convergence.subprocess, "run", run)
    args = SimpleNamespace(data=tmp_path, out=tmp_path, preset="small", threads=1)
    device = torch.device("cuda", 1)
    assert compare_convergence._train(args, ("one", 0), Config(), device)
    (words,) = commands
    assert words[words.index("--device") + 1] == "cuda:1"


def test_program(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *("--data", str(digits), "--out", str(tmp_path), "--steps", "4", "--backbone-steps", "1"),
        *("--eval-every", "2", "--rounds", "1", "--timing-steps", "1"),
        *("--jobs", "2"),
        *("--variant", "K4", "model.num_points=4", "--variant", "K2", "model.num_points=2"),
        *as_words(TINY_RUN),
    ]
    program("compare_convergence")(words)
    printed = capsys.readouterr().out
    assert "K4-0: done" in printed
    assert (tmp_path / "comparison.md").read_text() in printed
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [step for step, _ in found["K2"]["runs"]["0"]["figures"]["AP"]] == [2, 4]
    assert found["K2"]["parameters"] < found["K4"]["parameters"]
    # What is there is not trained again, and what has other settings is left alone.
    program("compare_convergence")(words)
    assert "begins" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"K4-0 holds .*: optim\.learning_rate is 0\.001 there"):
        program("compare_convergence")([*words, "--set", "optim.learning_rate=0.5"])
    renamed = tmp_path / "renamed"
    shutil.copytree(digits, renamed)
    for split in ("train", "val"):
        file = renamed / split / "instances.json"
        file.write_text(file.read_text().replace('"name": "7"', '"name": "seal"'))
    with pytest.raises(SystemExit, match=r"other categories: class 7 is '7' .* 'seal'"):
        program("compare_convergence")([*words, "--data", str(renamed)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds: must be a whole number of at least 1, got 0"),
        (["--steps", "5", "--timing-steps", "4"], "must be at most --steps - 2, 3, got 4"),
        (["--seeds", "1", "1"], "must differ"),
        (["--seeds", "-1"], "seed must be at least 0"),
        (["--backbone-steps", "-1"], "backbone_stage.steps must be at least 0"),
        (["--variant", "../up", "seed=1"], "is part of a folder's name, got '../up'"),
        (["--set", "model.num_heads=5"], "must be divisible by num_heads, 5"),
        (["--variant", "a", "--variant", "a", "seed=1"], "must differ"),
        (["--variant", "odd", "model.wings=2"], "no field 'model.wings'"),
        (["--device", "tpu"], "--device tpu cannot be used"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        program("compare_convergence")(["--data", str(tmp_path), "--out", str(tmp_path), *words])
    assert message in f"{ended.value} {capsys.readouterr().err}"
