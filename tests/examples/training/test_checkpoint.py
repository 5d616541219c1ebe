"""Checkpoints survive interruption and corruption; configs survive the way through a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from defvis.config import Config
from defvis.config_io import override
from defvis.presets import PRESETS, preset
from defvis.training import checkpoint
from defvis.training.checkpoint import load_checkpoint, previous, save_checkpoint


def test_round_trip_and_previous(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in range(3):
        save_checkpoint(path, {"step": step, "weights": torch.full((3,), step)})
    assert load_checkpoint(path)["step"] == 2
    assert load_checkpoint(previous(path))["weights"].tolist() == [1, 1, 1]
    assert {file.name for file in tmp_path.iterdir()} == {path.name, previous(path).name}


def test_interrupted_write_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def half(state: object, file: object) -> None:
        file.write(b"PK half a file")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}


@pytest.mark.parametrize("keep", [0, 100])
def test_corrupt_checkpoint_falls_back(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt.*using .*previous"):
        assert load_checkpoint(path) == {"step": 1}
    previous(path).write_bytes(b"")
    with pytest.raises(RuntimeError, match="no checkpoint can be read"):
        load_checkpoint(path)


def test_every_flipped_byte_of_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    weights = torch.full((16,), 1.2345678)
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2, "weights": weights})
    content = path.read_bytes()
    place = content.index(weights.numpy().tobytes())
    for byte in range(place, place + 64, 7):
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 1]) + content[byte + 1 :])
        with pytest.warns(UserWarning, match="wrong checksum|Bad CRC"):
            assert load_checkpoint(path) == {"step": 1}


def test_a_broken_checkpoint_does_not_displace_the_good_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
    path.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="using"):
        load_checkpoint(path, set_aside=True)
    assert not path.exists()
    assert path.with_name("checkpoint.pt.broken").read_bytes() == b"broken"
    assert load_checkpoint(previous(path)) == {"step": 1}
    save_checkpoint(path, {"step": 3})
    assert load_checkpoint(previous(path)) == {"step": 1}


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "checkpoint.pt", tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (witness,))

    torch.save({"step": Evil()}, path)
    with pytest.raises(RuntimeError, match="no checkpoint can be read"):
        load_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_the_way_through_a_file(name: str) -> None:
    config = preset(name)
    assert Config.from_dict(json.loads(str(config))) == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.rate=1", "must be a field of the config = a value, got 'optim.rate=1'"),
        ("steps", "got 'steps'"),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("steps.x=1", "must be a field"),
        ("precision=fp8", r"precision must be one of \['fp32', 'bf16', 'fp16'\], got 'fp8'"),
    ],
)
def test_bad_overrides(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(preset("small"), assignment)


def test_overrides() -> None:
    assert override(preset("small"), "optim.learning_rate=1").optim.learning_rate == 1.0
    assert override(preset("small"), "model.backbone.name=a/b").model.backbone.name == "a/b"
    backbone = override(preset("small"), 'model.backbone.out_features=["stage2"]').model.backbone
    assert backbone.out_features == ("stage2",)
    with pytest.raises(ValueError, match=r"config\.model has no field 'depth'"):
        Config.from_dict({"model": {"depth": 3}})
    with pytest.raises(ValueError, match=r"preset must be one of .*'small'.* got 'huge'"):
        preset("huge")
