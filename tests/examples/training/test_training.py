"""Training as a user runs it: from the command line, stopped and resumed, on other data."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from defvis.config import Config
from defvis.data.ytvis import YouTubeVIS, find_files, load
from defvis.evaluation.ap import evaluate
from defvis.training import log
from defvis.training.checkpoint import load_checkpoint
from defvis.training.stages import JointStage
from defvis.training.trainer import Trainer
from tests.examples.support import TINY_RUN, as_words, changed, launch

LEARNS = [
    *TINY_RUN, "steps=40", "backbone_stage.steps=40", "model.num_points=5", "batch_size=4",
    "model.num_slots=10", "model.backbone.hidden_sizes=[16, 24]", "optim.warmup_steps=5",
    "backbone_stage.frames_per_step=8", "backbone_stage.warmup_steps=5", "log_every=5",
    "checkpoint_every=20", "eval_every=25", "eval_videos=2",
]  # fmt: skip


def _program(*words: str) -> subprocess.CompletedProcess[str]:
    process = launch(*words)
    out, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


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
    done = _program("train_defvis.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "24 training and 6 validation videos, 10 classes" in done.stdout
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


def test_resumed_run_equals_uninterrupted_run(
    data: tuple[YouTubeVIS, YouTubeVIS], short: Config, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = Trainer(short, *data, tmp_path / "whole", progress=False)
    expected = whole.train()

    steps = 0
    original = JointStage.step

    def stop(self: JointStage, batch: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return original(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(JointStage, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            Trainer(short, *data, tmp_path / "part", progress=False).train()
    saved = load_checkpoint(tmp_path / "part" / "checkpoint.pt")
    assert (saved["stage"], saved["step"]) == ("joint", 3)
    torch.manual_seed(123)  # the generator's state comes from the checkpoint
    found = Trainer(short, *data, tmp_path / "part", resume=True, progress=False).train()

    assert found == expected
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "part")]
    for key in ("model", "average"):
        first, second = (s["model"] if key == "model" else s["state"]["average"]["model"]
                         for s in states)  # fmt: skip
        for name in first:
            assert first[name].equal(second[name]), f"{key}: {name}"
    rows = [log.read(tmp_path / name / "log.jsonl") for name in ("whole", "part")]
    assert [(r["stage"], r["kind"], r["step"]) for r in rows[0]] == [
        (r["stage"], r["kind"], r["step"]) for r in rows[1]
    ]


def test_resume_from_the_backbone_stage_and_after_the_end(
    data: tuple[YouTubeVIS, YouTubeVIS], short: Config, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    expected = Trainer(short, *data, tmp_path / "whole", progress=False).train()
    with monkeypatch.context() as patch:
        patch.setattr(JointStage, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Trainer(short, *data, tmp_path / "part", progress=False).train()
    assert load_checkpoint(tmp_path / "part" / "checkpoint.pt")["stage"] == "backbone"
    for _ in range(2):  # the second time there is nothing left to train
        assert (
            Trainer(short, *data, tmp_path / "part", resume=True, progress=False).train()
            == expected
        )


def test_seed_decides(
    data: tuple[YouTubeVIS, YouTubeVIS], short: Config, tmp_path: Path
) -> None:  # fmt: skip
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = dataclasses.replace(short, seed=seed, steps=2, eval_every=0)
        Trainer(config, *data, tmp_path / name, progress=False).train()
        states.append(load_checkpoint(tmp_path / name / "checkpoint.pt")["model"])
    weight = "decoder.queries.slot_content"
    assert states[0][weight].equal(states[1][weight])
    assert not states[0][weight].equal(states[2][weight])


def test_videos_of_other_lengths_and_sizes(digits: Path, short: Config, tmp_path: Path) -> None:
    """A video of two frames and one of another size: batches and validation are padded."""
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    for split in ("train", "val"):
        file = root / split / "instances.json"
        content = json.loads(file.read_text())
        small, cut = content["videos"][:2]
        cut["file_names"], cut["length"] = cut["file_names"][:2], 2
        small["width"], small["height"] = 40, 36
        for name in small["file_names"]:
            Image.new("RGB", (40, 36)).save(root / split / "JPEGImages" / name)
        content["annotations"] = [a for a in content["annotations"] if a["video_id"] != small["id"]]
        for annotation in content["annotations"]:
            if annotation["video_id"] == cut["id"]:
                for key in ("segmentations", "bboxes", "areas"):
                    annotation[key] = annotation[key][:2]
        file.write_text(json.dumps(content))
    train, val = (load(*find_files(root / split)) for split in ("train", "val"))
    config = dataclasses.replace(short, batch_size=24, steps=2, eval_every=0)
    Trainer(config, train, val, tmp_path / "run", progress=False).train()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    lengths = {r["video_id"]: len(r["segmentations"]) for r in results}
    assert all(lengths[number] == (2 if number == 2 else 4) for number in lengths)


def test_refusals(data: tuple[YouTubeVIS, YouTubeVIS], short: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(short, steps=1, eval_every=0)
    Trainer(config, *data, tmp_path / "run", progress=False).train()
    with pytest.raises(FileExistsError, match="holds a run already"):
        Trainer(config, *data, tmp_path / "run")
    with pytest.raises(ValueError, match="written with another config"):
        Trainer(dataclasses.replace(config, steps=2), *data, tmp_path / "run", resume=True)
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=3))
    with pytest.raises(ValueError, match="num_classes must be the dataset's 10, got 3"):
        Trainer(wrong, *data, tmp_path / "other")


def test_programs_explain_themselves(tmp_path: Path) -> None:
    for name, option in (
        ("train_defvis.py", "--shard"), ("evaluate_defvis.py", "--per-class"),
        ("infer_defvis.py", "--points"), ("compare_convergence.py", "--variant"),
        ("make_digits.py", "--seed"), ("convert_hela.py", "--scale"),
    ):  # fmt: skip
        shown = _program(name, "--help")
        assert shown.returncode == 0
        assert option in shown.stdout
    printed = _program("train_defvis.py", "--print-config", "--set", "steps=7")
    assert json.loads(printed.stdout)["steps"] == 7
    for arguments, message in (
        (["--set", "steps=x"], "steps must be a int"),
        (["--data", str(tmp_path), "--out", str(tmp_path / "run")], "holds none of instances.json"),
    ):
        failed = _program("train_defvis.py", *arguments)
        assert failed.returncode != 0
        assert message in failed.stderr
        assert "Traceback" not in failed.stderr
