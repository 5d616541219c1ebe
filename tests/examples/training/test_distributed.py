"""Two processes with gloo train as one process with the doubled batch does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from defvis.config import Config
from defvis.data.dataset import YouTubeVIS
from defvis.data.ytvis import find_files, load
from defvis.pretrained.checkpoint_file import load_checkpoint, previous
from defvis.training import log
from defvis.training.load_trained import load_trained
from defvis.training.trainer import Trainer
from tests.examples.support import TINY_RUN, TORCHRUN, as_words, changed, launch, program

# Frozen, because batch norm would see each process's own half; what it is frozen at is no matter.
pytestmark = pytest.mark.filterwarnings("ignore:parts of the backbone are frozen")
TORCHRUN_SETS = {
    "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
}  # fmt: skip
LOSSES = {"total", "class", "l1", "giou", "mask", "dice", "dense"}
# In fp32 sums taken in another order differ by this share of a tensor's largest entry. Half the
# batch would change gradients by tens of percent.
ROUNDING = 2e-4
# Adam's step follows the gradient's sign even where it is nothing but rounding, so weights differ
# more than gradients do: by this at most, a twentieth of a step.
OF_A_STEP = 5e-5

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def uneven(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of four or three frames, with up to three objects or none."""
    root = tmp_path_factory.mktemp("uneven") / "digits"
    shutil.copytree(digits, root)
    file = root / "train" / "instances.json"
    content = json.loads(file.read_text())
    empty = {video["id"] for video in content["videos"][::4]}
    cut = {video["id"] for video in content["videos"][1::4]}
    content["annotations"] = [a for a in content["annotations"] if a["video_id"] not in empty]
    for video in content["videos"]:
        if video["id"] in cut:
            video["file_names"], video["length"] = video["file_names"][:3], 3
    for annotation in content["annotations"]:
        if annotation["video_id"] in cut:
            for key in ("segmentations", "bboxes", "areas"):
                annotation[key] = annotation[key][:3]
    file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def train(uneven: Path) -> Train:
    """A function that trains in two processes, two clips and two frames of each per step."""
    settings = [
        # The default asks for the first two of three stages; the third gets no gradient.
        *TINY_RUN, "model.backbone.hidden_sizes=[8, 16, 16]", "model.backbone.depths=[1, 1, 1]",
        "model.num_points=4", "model.backbone.frozen_norm=true", "optim.warmup_steps=2",
        # Its class loss has a denominator of its own; boxes and masks are divided by pairs.
        "model.class_output=softmax",
        # Of one video, the second process has nothing to validate.
        "steps=5", "backbone_stage.steps=2", "checkpoint_every=3", "eval_every=3", "eval_videos=1",
    ]  # fmt: skip

    def run(out: Path, *words: str) -> Path:
        process = launch(
            "train_defvis.py", "--data", str(uneven), "--out", str(out), "--device", "cpu",
            *as_words(settings), *words, module=TORCHRUN,
        )  # fmt: skip
        try:
            shown, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, errors[-3000:]
        assert "Grad strides do not match" not in errors
        assert shown.count("2 processes on cpu") == 1, "one process speaks"
        return out

    return run


@pytest.fixture(scope="module")
def copies(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which each process has a copy of the model."""
    return train(tmp_path_factory.mktemp("copies") / "run")


@pytest.fixture(scope="module")
def shards(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run with the model shared out."""
    return train(tmp_path_factory.mktemp("shards") / "run", "--shard")


@pytest.fixture(scope="module")
def config(copies: Path) -> Config:
    """What both were trained with."""
    return Config.from_dict(json.loads((copies / "config.json").read_text()))


@pytest.fixture(scope="module")
def data(uneven: Path) -> list[YouTubeVIS]:
    """Training and validation videos."""
    return [load(*find_files(uneven / split)) for split in ("train", "val")]


@pytest.fixture(scope="module")
def single(
    config: Config, data: list[YouTubeVIS], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of one process with twice the batch."""
    doubled = changed(config, "batch_size=4", "backbone_stage.frames_per_step=4")
    out = tmp_path_factory.mktemp("single") / "run"
    Trainer(doubled, *data, out, progress=False).train()
    return out


def test_two_processes_equal_one_with_twice_the_batch(copies: Path, single: Path) -> None:
    rows, wanted = (log.read(folder / "log.jsonl") for folder in (copies, single))
    assert len(rows) == len(wanted) == 2 + 5 + 2
    for row, other in zip(rows, wanted, strict=True):
        names = {"AP", "AP50"} if row["kind"] == "val" else LOSSES
        if row["stage"] == "backbone":
            names = {"total", "dense"}
        for name in names:
            assert row["kind"] == "val" or other[name] > 1e-3, (name, other)
            assert row[name] == pytest.approx(other[name], rel=2e-4, abs=1e-6), (name, row)
    first, second = (load_checkpoint(folder / "checkpoint.pt") for folder in (copies, single))
    assert len(first["random"]) == 2
    _assert_close(first, second, moments=ROUNDING)


def test_shared_out_checkpoint_is_an_ordinary_one(copies: Path, shards: Path) -> None:
    first, second = (load_checkpoint(folder / "checkpoint.pt") for folder in (shards, copies))
    assert _shape(first) == _shape(second)
    _assert_close(first, second, moments=1e-5)
    average = first["state"]["average"]["model"]
    for name, tensor in load_trained(shards).model.state_dict().items():
        assert tensor.equal(average[name]), name


def test_shared_out_run_resumes_one_of_copies(copies: Path, train: Train, tmp_path: Path) -> None:
    part = tmp_path / "run"
    shutil.copytree(copies, part)
    os.replace(previous(part / "checkpoint.pt"), part / "checkpoint.pt")
    saved = load_checkpoint(part / "checkpoint.pt")
    assert (saved["stage"], saved["step"]) == ("joint", 3)
    train(part, "--resume", "--shard")
    first, second = (load_checkpoint(folder / "checkpoint.pt") for folder in (part, copies))
    _assert_close(first, second, moments=1e-5)
    for mine, other in zip(first["random"], second["random"], strict=True):
        assert mine["cpu"].equal(other["cpu"])


def test_sharing_out_needs_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program("train_defvis")(["--shard"])
    assert "--shard needs at least 2 processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "has RANK but no WORLD_SIZE: start several processes with torchrun, or"),
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE but no RANK"),
        ({"LOCAL_RANK": "0"}, "has LOCAL_RANK but no RANK"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "has RANK but no MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}, "but no MASTER_PORT"),
        ({**TORCHRUN_SETS, "RANK": "first"}, "RANK in the environment must be a whole number"),
        ({**TORCHRUN_SETS, "WORLD_SIZE": "-2"}, "WORLD_SIZE in the environment must be a whole"),
        ({**TORCHRUN_SETS, "RANK": "2"}, "RANK in the environment must be below WORLD_SIZE, 2"),
    ],
)
def test_torchruns_variables(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        program("train_defvis")(["--device", "cpu"])
    assert message in capsys.readouterr().err


def test_other_number_of_processes_is_refused(
    copies: Path, config: Config, data: list[YouTubeVIS]
) -> None:
    with pytest.raises(ValueError, match="was written by 2 processes, not 1"):
        Trainer(config, *data, copies, resume=True, progress=False)


def _assert_close(found: dict[str, Any], wanted: dict[str, Any], moments: float) -> None:
    """Compares checkpoints; Adam's means to `moments`, a share of the tensor's largest entry."""
    assert found["step"] == wanted["step"]
    assert found["state"]["average"]["updates"] == wanted["state"]["average"]["updates"]
    pairs = [(found["model"], wanted["model"])]
    pairs += [tuple(s["state"]["average"]["model"] for s in (found, wanted))]
    for mine, other in pairs:
        assert list(mine) == list(other)
        for name in other:
            difference = (mine[name] - other[name]).abs()
            if name.endswith("in_proj_bias"):  # of queries, keys and values
                # That of keys cancels in the softmax: its gradient is rounding and nothing else.
                queries, _, values = difference.chunk(3)
                difference = torch.cat((queries, values))
            assert difference.max() <= OF_A_STEP, name
    states = (s["state"]["optimizer"]["state"].values() for s in (found, wanted))
    for mine, other in zip(*states, strict=True):
        assert mine["step"] == other["step"]
        for key in ("exp_avg", "exp_avg_sq"):
            difference = (mine[key] - other[key]).abs().max()
            assert difference <= moments * other[key].abs().max() + 1e-6


def _shape(state: Any) -> Any:
    """What a checkpoint is made of: the names, and kind and size of what they stand for."""
    if isinstance(state, dict):
        return {name: _shape(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_shape(value) for value in state]
    if isinstance(state, torch.Tensor):
        return type(state), state.dtype, state.shape
    return type(state)
