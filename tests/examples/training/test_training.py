"""Training as a user runs it: from the command line, stopped and resumed, on other data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from defvis.config import Config
from defvis.data.dataset import YouTubeVIS
from defvis.data.ytvis import find_files, load
from defvis.evaluation.ap import evaluate
from defvis.pretrained.checkpoint_file import load_checkpoint
from defvis.programs import only_run_in
from defvis.training import log
from defvis.training.stages import JointStage
from defvis.training.trainer import Trainer
from tests.examples.support import TINY_RUN, as_words, changed, launch, program

LEARNS = [
    *TINY_RUN, "steps=40", "backbone_stage.steps=40", "model.num_points=5", "batch_size=4",
    "model.num_slots=10", "model.backbone.hidden_sizes=[16, 24]", "optim.warmup_steps=5",
    "backbone_stage.frames_per_step=8", "backbone_stage.warmup_steps=5", "log_every=5",
    "checkpoint_every=20", "eval_every=25", "eval_videos=2",
]  # fmt: skip


@pytest.fixture
def data(digits: Path) -> tuple[YouTubeVIS, YouTubeVIS]:
    return load(*find_files(digits / "train")), load(*find_files(digits / "val"))


@pytest.fixture
def short(config: Config) -> Config:
    """A run of six and eight steps."""
    return changed(
        config, "model.num_classes=10", "model.dropout=0.1", "backbone_stage.steps=6",
        "backbone_stage.frames_per_step=4", "steps=8", "batch_size=2", "eval_every=4",
        "eval_videos=2", "checkpoint_every=3", "log_every=2",
    )  # fmt: skip


def test_command_line(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--data", str(digits), "--out", str(out), *as_words(LEARNS)]
    process = launch("train_defvis.py", *words)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    assert "24 training and 6 validation videos, 10 classes" in printed
    rows = log.read(out / "log.jsonl")
    for stage in ("backbone", "joint"):
        losses = [r["total"] for r in rows if r["kind"] == "train" and r["stage"] == stage]
        assert len(losses) == 8
        assert sum(losses[-2:]) < 0.85 * sum(losses[:2]), f"the {stage} stage does not learn"
    for name in ("l1", "mask"):
        values = [r[name] for r in rows if r["kind"] == "train" and r["stage"] == "joint"]
        assert values[-1] < values[0]
    assert [r["step"] for r in rows if r["kind"] == "val"] == [25, 40]
    metrics = json.loads((out / "metrics.json").read_text())
    results = json.loads((out / "results.json").read_text())
    val = load(*find_files(digits / "val"))
    assert evaluate(val, results).figures["AP"] == pytest.approx(metrics["AP"])
    with Image.open(out / "curves.png") as curves:
        assert curves.size[0] > 500
    strips, films = (sorted((out / "overlays").glob(f"*.{kind}")) for kind in ("png", "webp"))
    assert len(strips) == len(films) == 6
    with Image.open(films[0]) as film:
        assert film.n_frames == 4
    assert Config.from_dict(json.loads((out / "config.json").read_text())).model.num_points == 5


def test_resume_from_the_backbone_stage_and_after_the_end(
    data: tuple[YouTubeVIS, YouTubeVIS],
    short: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = Trainer(short, *data, tmp_path / "whole", progress=False).train()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JointStage, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            Trainer(short, *data, tmp_path / "part", progress=False).train()
    assert load_checkpoint(tmp_path / "part" / "checkpoint.pt")["stage"] == "backbone"
    for _ in range(2):  # the second time there is nothing left to train
        torch.manual_seed(123)  # the generator's state comes from the checkpoint
        resumed = Trainer(short, *data, tmp_path / "part", resume=True, progress=False)
        assert resumed.train() == expected


def test_seed_decides(data: tuple[YouTubeVIS, YouTubeVIS], short: Config, tmp_path: Path) -> None:
    weights = []
    for seed in (0, 1):
        config = changed(short, f"seed={seed}", "steps=1", "backbone_stage.steps=0", "eval_every=0")
        Trainer(config, *data, tmp_path / str(seed), progress=False).train()
        model = load_checkpoint(tmp_path / str(seed) / "checkpoint.pt")["model"]
        weights.append(model["decoder.queries.seed_content.weight"])
    assert not weights[0].allclose(weights[1], atol=0.1)


def test_refusals(data: tuple[YouTubeVIS, YouTubeVIS], short: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(short, steps=1, eval_every=0)
    Trainer(config, *data, tmp_path / "run", progress=False).train()
    with pytest.raises(FileExistsError, match="holds a run already"):
        Trainer(config, *data, tmp_path / "run")
    other = dataclasses.replace(config, batch_size=1)
    with pytest.raises(ValueError, match="batch_size is 2 there and 1 here"):
        Trainer(other, *data, tmp_path / "run", resume=True)
    train, val = data
    for name, pair in (("train", (train.first(0), val)), ("val", (train, val.first(0)))):
        with pytest.raises(ValueError, match=f"{name} must have at least one video"):
            Trainer(config, *pair, tmp_path / "other")
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=3))
    with pytest.raises(ValueError, match="num_classes must be the dataset's 10, got 3"):
        Trainer(wrong, *data, tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("train_defvis", "--shard"),
        ("evaluate_defvis", "--per-class"),
        ("infer_defvis", "--points"),
        ("compare_convergence", "--variant"),
        ("make_digits", "--seed"),
        ("convert_hela", "--scale"),
    ],
)
def test_programs_explain_themselves(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        program(name)(["--help"])
    assert stopped.value.code == 0
    assert option in capsys.readouterr().out


def test_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    program("train_defvis")(["--print-config", "--set", "steps=7"])
    assert json.loads(capsys.readouterr().out)["steps"] == 7


@pytest.fixture
def words(digits: Path, tmp_path: Path) -> list[str]:
    """A run of two steps without the backbone stage."""
    settings = [*TINY_RUN, "model.num_points=2", "backbone_stage.steps=0", "steps=2"]
    return ["--data", str(digits), "--out", str(tmp_path / "run"), *as_words(settings)]


def test_wrong_calls(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    calls = {
        "--profile 1": "--profile must be at most 0, the 2 steps of the joint stage without 2 to ",
        "--profile 0": "--profile: must be a whole number of at least 1, got 0",
        "--set model.num_heads=5": "embed_dim, 24, must be divisible by num_heads, 5",
        "--device cuda:99": "--device cuda:99 cannot be used: ",
        "--device meta": "--device meta cannot be used: ",
        "--device abacus": "--device abacus cannot be used: ",
    }
    for call, message in calls.items():
        with pytest.raises(SystemExit, match="2"):
            program("train_defvis")([*words, *call.split()])
        assert message in capsys.readouterr().err


def test_a_folder_belongs_to_one_live_run(words: list[str], tmp_path: Path) -> None:
    with only_run_in(tmp_path / "run"), pytest.raises(SystemExit, match="another run is writing"):
        program("train_defvis")(words)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with pytest.raises(SystemExit, match="cannot write to /proc/run: "):
        program("train_defvis")([*words, "--out", "/proc/run"])


def test_divergence_says_what_to_do(words: list[str], tmp_path: Path) -> None:
    words += as_words(["optim.learning_rate=1e30", "checkpoint_every=1", "optim.warmup_steps=0"])
    message = "diverged in step [12] of the joint stage: .* Start again with a lower optim.learning"
    with pytest.raises(SystemExit, match=message):
        program("train_defvis")(words)
    for file in (tmp_path / "run").glob("checkpoint.pt*"):
        model = load_checkpoint(file)["model"]
        assert all(tensor.isfinite().all() for tensor in model.values())


def test_no_room_for_checkpoints(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(SystemExit, match="has room for 1 MiB, but 3 checkpoints need "):
        program("train_defvis")(words)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_missing_data_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no training videos: looked for"):
        program("train_defvis")(["--data", str(tmp_path), "--out", str(tmp_path / "run")])
