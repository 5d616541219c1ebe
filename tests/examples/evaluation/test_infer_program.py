"""infer_defvis.py: folders and video files of any length, and everything it writes."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from defvis.arguments import say
from defvis.data.sources import open_source
from defvis.decoding.errors import DataError
from defvis.evaluation.overlays import save_video
from defvis.evaluation.predict import check_clips
from defvis.export.onnx_model import OnnxModel
from defvis.models.model import DefVIS
from defvis.programs import only_run_in
from tests.examples.support import program, tiny_model

infer = program("infer_defvis")


@pytest.fixture
def no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("predicted before all was checked")

    monkeypatch.setattr("defvis.evaluation.predict.predict_videos", fail)


def _pictures(folder: Path, count: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Frames numbered by their red channel, in steps of 20."""
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", size, (20 * index % 240, 100, 30)).save(folder / f"{index:04d}.png")
    return folder


def _film(path: Path, count: int, size: tuple[int, int] = (64, 48)) -> Path:
    pytest.importorskip("av", reason="PyAV is not installed")
    save_video((Image.new("RGB", size, (20 * i, 100, 30)) for i in range(count)), path, 12.0)
    return path


def test_folder(digits: Path, tiny_run: Path, tmp_path: Path,
                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """A video of the validation split gives what the run's own validation gave."""
    out = tmp_path / "out"
    infer(["--run", str(tiny_run), "--source", str(digits / "val/JPEGImages/00001"),
           "--out", str(out), "--threshold", "0", "--points", "decoder:1:2"])  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    expected = [r for r in json.loads((tiny_run / "results.json").read_text())
                if r["video_id"] == 1]  # fmt: skip
    assert [r["category_id"] for r in results] == [r["category_id"] for r in expected]
    assert [r["score"] for r in results] == pytest.approx([r["score"] for r in expected], abs=1e-4)
    with Image.open(out / "overlay.webp") as film:
        assert film.n_frames == 4
        assert film.size == (320, 240)
    for name in ("sheet.png", "points.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 4 * 64
    shown = capsys.readouterr().out
    assert "4 frames," in shown
    assert "  #" in shown
    assert shown.endswith(
        f"written to {out}: results.json, overlay.webp, sheet.png, points.png\n"
        f"to look at: {out / 'overlay.webp'}\n"
    )


def test_frames_come_to_the_scale_of_training(
    digits: Path, slots_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three times as large, they give the masks of their own size in the source's pixels."""
    checkpoint = torch.load(slots_run / "checkpoint.pt", weights_only=True)
    del checkpoint["config"]["data"]["seen_short_sides"]
    torch.save(checkpoint, tmp_path / "old.pt")
    large = tmp_path / "large"
    large.mkdir()
    for file in sorted((digits / "val/JPEGImages/00001").iterdir()):
        with Image.open(file) as frame:
            frame.resize((192, 144), Image.Resampling.BICUBIC).save(large / f"{file.stem}.png")
    scores = []
    for run, source, words, said in (
        (tmp_path / "old.pt", digits / "val/JPEGImages/00001", [], "does not say at which scale"),
        (slots_run, large, [], "192 x 144 pixels are shown to the model at 64 x 48, as"),
        (slots_run, large, ["--short-side", "144"], "3 times larger than in training"),
    ):
        out = tmp_path / f"out{len(scores)}"
        infer(["--run", str(run), "--source", str(source), "--out", str(out), "--write", "results",
               "--points", "decoder:0:0", *words])  # fmt: skip
        assert said in capsys.readouterr().out
        results = json.loads((out / "results.json").read_text())
        sizes = {tuple(m["size"]) for r in results for m in r["segmentations"] if m}
        assert sizes == {(48, 64) if source != large else (144, 192)}
        scores.append([r["score"] for r in results])
    own, scaled, unscaled = scores
    assert scaled == pytest.approx(own, abs=0.02)
    assert unscaled != pytest.approx(own, abs=0.02)


def test_video_file(tiny_run: Path, tmp_path: Path) -> None:
    """Eleven frames, every second of them taken, in overlapping clips of four."""
    film = _film(tmp_path / "film.mp4", 11)
    out = tmp_path / "out"
    infer(["--run", str(tiny_run), "--source", str(film), "--out", str(out), "--every", "2",
           "--threshold", "0", "--write", "results", "video", "--video-id", "9",
           "--points", "encoder:60:40:5"])  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert {len(r["segmentations"]) for r in results} == {6}
    assert {r["video_id"] for r in results} == {9}
    written = open_source(out / "overlay.mp4")
    assert (written.length, written.height, written.width) == (6, 240, 320)
    assert not (out / "overlay.webp").exists()
    assert (out / "points.png").exists()


def test_frames_of_a_film_in_any_order(tmp_path: Path) -> None:
    film = open_source(_film(tmp_path / "film.mkv", 9), keep=2)
    assert film.length == 9
    for index in (0, 1, 5, 4, 8, 0, 7):
        assert film.frame(index).shape == (48, 64, 3)
        assert abs(float(film.frame(index)[..., 0].mean()) - 20 * index) < 6
    with pytest.raises(DataError, match="has no frame 9 of 9"):
        film.frame(9)
    assert film.frame(8).mean() > film.frame(6).mean()
    third = open_source(tmp_path / "film.mkv", every=3)
    assert third.length == 3
    assert abs(float(third.frame(2)[..., 0].mean()) - 120) < 6


def test_odd_sizes_and_a_single_frame(tiny_run: Path, tmp_path: Path) -> None:
    for number, (count, size) in enumerate(((1, (33, 21)), (2, (7, 50)), (1, (1, 1)))):
        source = _pictures(tmp_path / f"in{number}", count, size)
        out = tmp_path / f"out{number}"
        kinds = ["results", "webp", "sheet"]
        infer(["--run", str(tiny_run), "--source", str(source), "--out", str(out),
               "--write", *kinds, "--threshold", "0"])  # fmt: skip
        with Image.open(out / "overlay.webp") as picture:
            assert picture.size[0] % size[0] == 0


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder, "there is no file or folder"),
        (lambda folder: _pictures(folder, 0), "holds no pictures"),
        (lambda folder: _truncated(folder), r"frame 1: cannot read .*0001\.png"),
        (lambda folder: _no_film(folder), "as video"),
    ],
    ids=["missing", "empty", "cut", "film"],
)
def test_sources_that_cannot_be_read(
    tiny_run: Path, tmp_path: Path, prepare: Callable[[Path], Path], message: str
) -> None:
    source = prepare(tmp_path / "source")
    with pytest.raises(SystemExit, match=message):
        infer(["--run", str(tiny_run), "--source", str(source), "--out", str(tmp_path / "out")])


def _truncated(folder: Path) -> Path:
    second = _pictures(folder, 3) / "0001.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(second)
    second.write_bytes(second.read_bytes()[:3000])
    return folder


def _no_film(path: Path) -> Path:
    pytest.importorskip("av", reason="PyAV is not installed")
    path.write_bytes(b"no video at all" * 50)
    return path


def test_video_files_need_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.mp4").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"film\.mp4: video files need PyAV: pip install av"):
        open_source(tmp_path / "film.mp4")
    with pytest.raises(SystemExit, match="--write video needs PyAV"):
        infer(["--run", "x", "--source", "y", "--out", "z", "--write", "video"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--points", "decoder:99:0"], "slot must be 0 to 2, got 99"),
        (["--points", "decoder:0:9"], "a frame below 2, got 9"),
        (["--points", "encoder:70:0:0"], "pixel must lie in 64 x 48, got (70, 0)"),
        (["--points", "encoder:1:2"], "decoder:SLOT:FRAME or encoder:X:Y:FRAME"),
        (["--points", "decoder:a:b"], "decoder:SLOT:FRAME or encoder:X:Y:FRAME"),
        (["--device", "gpu"], "--device gpu cannot be used"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--rate", "-1"], "--rate: must be 0.001 to 1000, got -1"),
        (["--rate", "nan"], "--rate: must be 0.001 to 1000, got nan"),
        (["--threshold", "inf"], "--threshold: must be 0 to 1, got inf"),
        (["--window", "-1"], "--window: must be a whole number of at least 0, got -1"),
        (["--every", "0"], "--every: must be a whole number of at least 1, got 0"),
        (["--video-id", "x"], "--video-id: must be a whole number of at least 0, got x"),
    ],
)
def test_wrong_calls(
    tiny_run: Path, tmp_path: Path, words: list[str], message: str, no_prediction: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = _pictures(tmp_path / "in", 2)
    with pytest.raises(SystemExit) as end:
        infer(["--run", str(tiny_run), "--source", str(source), "--out", str(tmp_path / "out"),
               *words])  # fmt: skip
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_looked_at_first(tiny_run: Path, tmp_path: Path, no_prediction: None) -> None:
    """Where to write to, whether another run does, and whether the model takes the clips."""
    words = ["--run", str(tiny_run), "--source", str(_pictures(tmp_path / "in", 9)), "--out"]
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "seen"):
        with pytest.raises(SystemExit, match=f"infer_defvis: cannot write to {out}"):
            infer([*words, str(out)])
    with only_run_in(tmp_path / "out"), pytest.raises(SystemExit, match="another run is writing"):
        infer([*words, str(tmp_path / "out")])


def test_another_length_than_a_model_has_weights_for(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_model(), encoder_attention="frames")
    video = open_source(_pictures(tmp_path / "in", 9))
    with pytest.raises(ValueError, match="num_frames = 4 frames, got a clip of 5"):
        check_clips(DefVIS(config), [video], 5)
    check_clips(DefVIS(config), [video], 3)
    session: Any = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(shape=["batch", 4, 3])])
    model = OnnxModel(session, tiny_model())
    check_clips(model, [video], 0)
    with pytest.raises(ValueError, match="takes clips of 4 frames, got one of 3"):
        check_clips(model, [video], 3)


def test_names_that_a_terminal_does_not_have(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    say("#1: 猫")
    sys.stdout.seek(0)
    assert sys.stdout.read() == "#1: \\u732b\n"


@pytest.mark.parametrize(("length", "shown"), [(4, 4), (9, 5)])
def test_a_long_animation_shows_every_nth_frame(
    length: int, shown: int, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("infer_defvis._ANIMATED", 5)
    source, out = _pictures(tmp_path / "in", length), tmp_path / "out"
    infer(["--run", str(tiny_run), "--source", str(source), "--out", str(out), "--write", "webp"])
    with Image.open(out / "overlay.webp") as film:
        assert film.n_frames == shown
    said = f"overlay.webp shows one frame in 2 of {length}; --write video shows all"
    assert (said in capsys.readouterr().out) is (shown < length)


def test_where_to_write_is_looked_at_first(
    tiny_run: Path, tmp_path: Path, no_prediction: None, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = _pictures(tmp_path / "in", 2), tmp_path / "out"
    (out / "sheet.png").mkdir(parents=True)
    words = ["--run", str(tiny_run), "--source", str(source), "--out"]
    with pytest.raises(SystemExit, match=r"cannot write .*sheet\.png: it is a folder"):
        infer([*words, str(out)])
    with pytest.raises(SystemExit, match="2"):
        infer([*words, str(source)])
    assert "--out must be another folder than --source" in capsys.readouterr().err
