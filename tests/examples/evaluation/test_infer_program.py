"""infer_defvis.py: folders and video files of any length, and everything it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defvis.data.errors import DataError
from defvis.data.sources import open_source
from defvis.evaluation.overlays import save_video
from tests.examples.support import program

infer = program("infer_defvis")


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
    assert "#0:" in shown


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
    ("query", "message"),
    [
        ("decoder:99:0", "slot must be 0 to 2, got 99"),
        ("decoder:0:9", "a frame below 2, got 9"),
        ("encoder:70:0:0", r"pixel must lie in"),
        ("encoder:1:2", "decoder:SLOT:FRAME or encoder:X:Y:FRAME"),
        ("decoder:a:b", "decoder:SLOT:FRAME or encoder:X:Y:FRAME"),
    ],
)
def test_queries_that_do_not_exist(
    tiny_run: Path, tmp_path: Path, query: str, message: str
) -> None:
    source = _pictures(tmp_path / "in", 2)
    with pytest.raises(SystemExit, match=message):
        infer(["--run", str(tiny_run), "--source", str(source), "--out", str(tmp_path / "out"),
               "--write", "--points", query])  # fmt: skip
