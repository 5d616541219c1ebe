"""Checkpoints survive interruption and corruption; configs survive the way through a file."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from defvis.config import Config
from defvis.config_io import override
from defvis.presets import PRESETS, preset
from defvis.pretrained.checkpoint_file import load_checkpoint, previous
from defvis.pretrained.tensor_file import CheckpointError
from defvis.training import checkpoint
from defvis.training.checkpoint import save_checkpoint


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


def test_full_disk_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt: File too large"):
            save_checkpoint(path, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert load_checkpoint(path) == {"step": 1}


@pytest.mark.parametrize(
    "pickled", [b".", b"\x80\x02h\x05.", b"\x80\x02}]K\x01s.", b"\x80\x09K\x01.", b"\x80\x02J\x01"]
)
def test_any_damage_is_a_checkpoint_error(tmp_path: Path, pickled: bytes) -> None:
    """Torch's reader raises IndexError, KeyError, TypeError, a warning, struct.error."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 1}, path)
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for entry, content in entries.items():
            file.writestr(entry, pickled if entry.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        load_checkpoint(path)


def test_damage_of_the_list_of_entries(tmp_path: Path) -> None:
    """Each bit of it: zipfile raises half a dozen types."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 1}, path)
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    for bit in range(8 * start, 8 * (start + 80), 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
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
        ("optim.rate=1", r"no field 'optim.rate'; the nearest are optim\.learning_rate, backbone_"),
        (
            "learning_rate=1",
            r"no field 'learning_rate'; the nearest are optim\.learning_rate, back",
        ),
        (
            "optim.lr=1e-3",
            r"no field 'optim\.lr'; the nearest are optim\.learning_rate, backbone_s",
        ),
        ("data.flipp=1", r"no field 'data\.flipp'; the nearest is data\.flip$"),
        ("data.colour_jitter=0", r"no field 'data\.colour_jitter'; the nearest is data\.recolour$"),
        ("batchsize=2", "no field 'batchsize'; the nearest is batch_size$"),
        ("stepps=2", r"no field 'stepps'; the nearest are steps, backbone_stage\.steps$"),
        ("wings=2", r"no field 'wings'; train_defvis\.py --print-config lists all$"),
        ("optim=2", r"no field 'optim': it is a group, with optim\.learning_rate and others"),
        ("steps", "a setting must be FIELD=VALUE, got 'steps' alone; now it is steps=4000"),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("steps.x=1", r"no field 'steps\.x'"),
        ("steps=1.5", "steps must be a whole number, got 1.5"),
        ("steps=true", "steps must be a whole number, got True"),
        ("steps=99999999999", "steps must be at least 1 and at most 2147483647, got 9"),
        ("backbone_stage.steps=-1", r"backbone_stage\.steps must be at least 0"),
        ("optim.learning_rate=NaN", r"optim\.learning_rate must be a finite number, got nan"),
        ("optim.learning_rate=1e999", r"optim\.learning_rate must be a finite number, got inf"),
        ("optim.learning_rate=-1", r"optim\.learning_rate must be at least 0, got -1\.0"),
        ("steps=1" + 400 * "0", "steps must be at least 1"),
        ("data.flip=1" + 400 * "0", r"data\.flip must be a finite number, got 1"),
        ("optim.clip_norm=0", r"optim\.clip_norm must be above 0, got 0\.0"),
        ("data.flip=1.5", r"data\.flip must be at least 0 and at most 1, got 1\.5"),
        ("model.dropout=1", r"model\.dropout must be at least 0 and below 1, got 1\.0"),
        ("seed=-1", "seed must be at least 0"),
        ("model.initial_box=[0.5, null]", r"each entry of model\.initial_box must be a finite"),
        ("model.backbone.depths=[1, 0]", r"each entry of model\.backbone\.depths must be at"),
        ("model.backbone.depths=[1, 1001]", r"depths must be at least 1 and at most 1000, got"),
        ("model.encoder_layers=1001", r"encoder_layers must be at least 0 and at most 1000, got"),
        ("model.backbone.depths=3", r"model\.backbone\.depths must be a list, got 3"),
        ("precision=fp8", r"precision must be one of \['fp32', 'bf16', 'fp16'\], got 'fp8'"),
    ],
)
def test_bad_overrides(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(preset("small"), assignment)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.embed_dim=25", r"model\.embed_dim must be even"),
        ("model.num_heads=5", "must be divisible by num_heads, 5"),
        ("model.project_groups=7", "must be divisible by project_groups, 7"),
        ("model.mask_dim=6", r"model\.mask_dim must be divisible by 4"),
        ("model.initial_box=[0.5]", "must be a width and a height"),
        ("model.backbone.depths=[1]", "one entry for each stage"),
        ('model.backbone.out_features=["stage3"]', r"some of \['stem', 'stage1', 'stage2'\]"),
        ('model.backbone.out_features=["stage2", "stage1"]', "in this order"),
        ("model.backbone.out_features=[]", "must name at least one stage"),
        ("model.backbone.frozen_stages=3", "frozen_stages must be at most the 2 stages"),
        ("data.crop_share=[0.9, 0.1]", "a smallest and a largest share"),
        ("accumulation=5", "accumulation must be at most batch_size, 4, got 5"),
    ],
)
def test_fields_that_disagree(assignment: str, message: str) -> None:
    config = override(preset("small"), assignment)
    with pytest.raises(ValueError, match=message):
        config.check()
    for name in PRESETS:
        preset(name).check()


def test_overrides() -> None:
    assert override(preset("small"), "optim.learning_rate=1").optim.learning_rate == 1.0
    assert override(preset("small"), "model.backbone.name=a/b").model.backbone.name == "a/b"
    backbone = override(preset("small"), 'model.backbone.out_features=["stage2"]').model.backbone
    assert backbone.out_features == ("stage2",)
    with pytest.raises(ValueError, match=r"config\.model has no field 'depth'"):
        Config.from_dict({"model": {"depth": 3}})
    for broken in (3, None, {"model": 3}, {"steps": {}}, {"weights": None}):
        with pytest.raises(ValueError, match="must be"):
            Config.from_dict(broken)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"preset must be one of .*'small'.* got 'huge'"):
        preset("huge")
