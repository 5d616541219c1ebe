"""--resume: what may change, what is compared and named, and checkpoints of other versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from defvis.config import Config
from defvis.data.dataset import YouTubeVIS
from defvis.data.ytvis import find_files, load
from defvis.models.model import DefVIS
from defvis.pretrained.checkpoint_file import load_checkpoint
from defvis.pretrained.tensor_file import CheckpointError
from defvis.training import log
from defvis.training.checkpoint import save_checkpoint
from defvis.training.distributed import World
from defvis.training.load_trained import load_trained
from defvis.training.resume import check_resumed
from defvis.training.stages import JointStage
from defvis.training.trainer import Trainer
from tests.examples.support import changed, tiny_model

FILE = Path("run/checkpoint.pt")


@pytest.fixture(scope="module")
def data(digits: Path) -> tuple[YouTubeVIS, YouTubeVIS]:
    return load(*find_files(digits / "train")), load(*find_files(digits / "val"))


@pytest.fixture
def saved(tiny_run: Path) -> dict[str, Any]:
    return load_checkpoint(tiny_run / "checkpoint.pt")


@pytest.fixture
def config(saved: dict[str, Any]) -> Config:
    """That of the checkpoint."""
    return Config.from_dict(saved["config"])


def test_goes_on_for_more_steps(data: tuple[YouTubeVIS, YouTubeVIS], tmp_path: Path) -> None:
    """At the learning rate that a run of the new length has, whatever changes besides."""
    settings = ["backbone_stage.steps=0", "steps=2", "batch_size=1", "eval_every=0", "log_every=1"]
    tiny = ["embed_dim=24", "num_heads=2", "encoder_layers=0", "decoder_layers=1", "num_points=2"]
    first = changed(
        Config(), *settings, *(f"model.{name}" for name in tiny), "optim.warmup_steps=0"
    )
    few = replace(data[1], videos=data[1].videos[:1])
    Trainer(first, data[0], few, tmp_path, progress=False).train()
    longer = changed(
        first, "steps=4", "data.workers=1", "data.cache_megabytes=0", "checkpoint_every=7",
        "eval_every=3", "eval_videos=1", "model.checkpointing=true", "loss.mask_chunk=1",
    )  # fmt: skip
    Trainer(longer, data[0], few, tmp_path, resume=True, progress=False).train()
    rows = [row for row in log.read(tmp_path / "log.jsonl") if row["kind"] == "train"]
    # Logged after the step, so it is the next one's: the cosine at 1 and 2 of 2, 3 and 4 of 4.
    low, high = 1e-5, 1e-3
    wanted = [(low + high) / 2, low, low + (high - low) * (1 - 2**-0.5) / 2, low]
    assert [row["lr"] for row in rows] == pytest.approx(wanted)
    assert load_trained(tmp_path).config == changed(longer, "data.seen_short_sides=[48, 48]")


def test_first_step_of_a_longer_run_has_its_rate() -> None:
    """It is not that of the schedule that ended."""
    model = DefVIS(tiny_model())
    config = changed(Config(model=tiny_model()), "optim.warmup_steps=0")
    short, longer = (JointStage(model, replace(config, steps=n), 1, World()) for n in (2, 4))
    state = short.state_dict()
    state["schedule"]["last_epoch"] = 2
    longer.load_state_dict(state)
    assert longer.learning_rate == pytest.approx((1e-3 + 1e-5) / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["steps=1"], "the joint stage has 2 steps there and 1 here"),
        (["epochs=0", "steps=3"], None),
        (["epochs=1"], None),  # 12 steps of two of the 24 videos
        (
            ["optim.learning_rate=0.5", "batch_size=1", "steps=1"],
            r"optim\.learning_rate is 0\.001 there and 0\.5 here; "
            "batch_size is 2 there and 1 here; the joint stage has 2 steps there and 1 here",
        ),
        (["precision=bf16"], "precision is 'fp32' there and 'bf16' here"),
        (["accumulation=2"], "accumulation is 1 there and 2 here"),
        (["backbone_stage.steps=2"], r"backbone_stage\.steps is 1 there and 2 here"),
        (["data.workers=3", "log_every=9", "eval_every=1", "eval_videos=7"], None),
        (["data.seen_short_sides=[]"], None),  # a checkpoint of an earlier version
    ],
)
def test_settings(
    data: tuple[YouTubeVIS, YouTubeVIS],
    saved: dict[str, Any],
    config: Config,
    settings: list[str],
    message: str | None,
) -> None:
    other = changed(config, *settings)
    if message is None:
        check_resumed(FILE, saved, other, data[0], 1)
        return
    with pytest.raises(ValueError, match=message):
        check_resumed(FILE, saved, other, data[0], 1)


def test_other_data(
    data: tuple[YouTubeVIS, YouTubeVIS], saved: dict[str, Any], config: Config
) -> None:
    train = data[0]
    names, ids = list(train.category_names), list(train.category_ids)
    names[3], ids[4] = "seal", 40
    short = replace(train.videos[5], files=train.videos[5].files[:2])
    others = [
        (replace(train, category_names=tuple(names)), "categories: class 3 is '3' .* 'seal'"),
        (replace(train, category_ids=tuple(ids)), r"categories: class 4 is .*id 5.*id 40"),
        (train.first(20), "training videos: 24 there and 20 here"),
        (replace(train, videos=train.videos[::-1]), "place 0 has video 1 there and 24 here"),
        (
            replace(train, videos=(*train.videos[:5], short, *train.videos[6:])),
            "video 6 has 4 frames there and 2 here",
        ),
        (
            replace(train, videos=(replace(train.videos[0], tracks=()), *train.videos[1:])),
            "training videos: names of frames or annotations differ",
        ),
    ]
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            check_resumed(FILE, saved, config, other, 1)
    with pytest.raises(ValueError, match="written by 1 processes, not 2"):
        check_resumed(FILE, saved, config, train, 2)


def test_older_checkpoints(
    data: tuple[YouTubeVIS, YouTubeVIS], saved: dict[str, Any], config: Config, tmp_path: Path
) -> None:
    """Of versions that had fewer fields and did not note the videos, or not their annotations."""
    del saved["videos"]["content"]
    check_resumed(FILE, saved, config, data[0], 1)
    del saved["videos"], saved["config"]["data"]["hue"], saved["config"]["accumulation"]
    save_checkpoint(tmp_path / "checkpoint.pt", saved)
    check_resumed(FILE, saved, config, data[0], 1)
    assert load_trained(tmp_path).config == config


def _damage(saved: dict[str, Any], kind: str) -> Any:
    model, average = saved["model"], saved["state"]["average"]["model"]
    if kind == "weights":
        return model
    if kind == "nested weights":
        return {"model": model}
    if kind == "list":
        return [1, 2]
    if kind == "newer":
        saved["config"]["model"]["wings"] = 2
    if kind == "wrong type":
        saved["config"]["optim"] = None
    if kind == "shape":
        saved["config"]["model"]["feedforward_dim"] = 10**9  # not a hundred gigabytes
    if kind == "missing":
        del average["project.0.bias"]
    if kind == "not finite":
        average["project.0.bias"][0] = float("nan")
    if kind == "dtype":
        average["project.0.bias"] = average["project.0.bias"].to(torch.int8)
    if kind == "no average":
        saved["state"]["average"] = {}
    if kind == "names":
        saved["categories"]["names"] = saved["categories"]["names"][:3]
    return saved


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("weights", "is not a checkpoint of train_defvis, it has no 'config'; .* --weights"),
        ("nested weights", "is not a checkpoint of train_defvis, it has no 'config'"),
        ("list", "it holds a list, not a dictionary"),
        ("newer", r"written by another version: config\.model has no field 'wings'"),
        ("wrong type", r"another version: config\.optim must be an object with fields, got None"),
        ("shape", r"feedforward\.layers\.\d\.(weight|bias) has shape .* not .*1000000000"),
        ("missing", r"the file has no project\.0\.bias"),
        ("not finite", r"project\.0\.bias is not finite"),
        ("dtype", r"project\.0\.bias has dtype torch\.int8"),
        ("no average", "cannot be built: 'model'"),
        ("names", "must have names of 10 categories"),
    ],
)
def test_what_is_no_checkpoint_is_said(
    saved: dict[str, Any], kind: str, message: str, tmp_path: Path
) -> None:
    torch.save(_damage(saved, kind), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        load_trained(tmp_path / "model.pth")
