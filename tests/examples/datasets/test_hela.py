"""The converter of cell sequences: tracks by overlap, tiles that share no pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defvis.data import rle
from defvis.data.ytvis import find_files, load
from defvis.datasets.hela import TileSettings, follow, stretched, write_tiles
from defvis.decoding.errors import DataError
from tests.examples.support import program


def _sequence(frames: int = 4) -> np.ndarray:
    """Two cells that drift, named anew in each frame, and one that comes in frame 2."""
    labels = np.zeros((frames, 64, 128), dtype=np.uint16)
    for frame in range(frames):
        names = np.random.default_rng(frame).permutation(200)[:3] + 1
        labels[frame, 5:17, 10 + frame : 22 + frame] = names[0]
        labels[frame, 40:50, 100 - 2 * frame : 112 - 2 * frame] = names[1]
        if frame >= 2:
            labels[frame, 5:20, 60:75] = names[2]
    return labels


def test_cells_keep_their_names() -> None:
    tracked = follow(_sequence())
    assert [len(np.unique(tracked[:, 5:17, :40])) - 1, len(np.unique(tracked)) - 1] == [1, 3]
    for frame in range(4):
        assert tracked[frame, 10, 16] == tracked[0, 10, 16] > 0
        assert tracked[frame, 45, 104] == tracked[0, 45, 104] > 0
    assert tracked[2, 10, 65] == tracked[3, 10, 65] > 0
    assert ((tracked > 0) == (_sequence() > 0)).all()


def test_a_division_leaves_one_track_and_starts_one() -> None:
    labels = np.zeros((2, 20, 20), dtype=np.uint16)
    labels[0, 5:15, 5:15] = 9
    labels[1, 5:15, 5:11], labels[1, 5:15, 12:15] = 3, 4
    tracked = follow(labels)
    assert tracked[1, 8, 8] == tracked[0, 8, 8] != tracked[1, 8, 13] > 0


def test_frames_without_cells() -> None:
    labels = np.zeros((3, 8, 8), dtype=np.uint16)
    assert not follow(labels).any()
    labels[0], labels[2] = 5, 7  # the whole frame, then nothing, then again
    assert [np.unique(frame).tolist() for frame in follow(labels)] == [[1], [0], [2]]


def test_tiles(tmp_path: Path) -> None:
    labels = _sequence()
    images = (33000 + 10 * labels).astype(np.uint16)
    settings = TileSettings(frames=2, height=32, width=32, scale=2)
    counts = write_tiles(tmp_path / "cells", images, labels, settings)
    assert counts == {"train": 12, "val": 4}
    train, val = (load(*find_files(tmp_path / "cells" / split)) for split in ("train", "val"))
    assert train.category_names == ("nucleus",)
    first = train.videos[0]
    assert (first.width, first.height, first.length) == (64, 64, 2)
    (cell,) = first.tracks
    for frame, runs in enumerate(cell.masks):
        assert runs is not None
        wanted = (labels[frame, :32, :32] > 0).repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(rle.decode(runs), wanted)
        bright = first.frame(frame)[..., 0] > 20
        assert (bright == wanted).mean() > 0.97
    assert sum(len(video.tracks) for video in val.videos) == 2  # one cell, in both halves of time


def test_contrast_is_stretched() -> None:
    grey = stretched(np.linspace(33000, 36000, 10000).astype(np.uint16).reshape(4, 50, 50))
    assert (grey.min(), grey.max()) == (0, 255)
    assert not stretched(np.full((1, 4, 4), 7, dtype=np.uint16)).any()


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = program("convert_hela")
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"cannot read .*Fluo_Hela_02_img\.tif"):
        convert(["--out", out, "--source", str(tmp_path)])
    labels = _sequence()
    for name in ("img", "ERR_SEG"):
        first, *others = [Image.fromarray(frame) for frame in labels]
        first.save(tmp_path / f"Fluo_Hela_02_{name}.tif", save_all=True, append_images=others)
    with pytest.raises(SystemExit, match="too few for clips of 10 frames"):
        convert(["--out", out, "--source", str(tmp_path)])
    convert(["--out", out, "--source", str(tmp_path), "--frames", "4", "--size", "32"])
    assert "6 training and 2 validation clips" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists already"):
        convert(["--out", out, "--source", str(tmp_path), "--frames", "4", "--size", "32"])
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        TileSettings(scale=0)
    with pytest.raises(DataError, match="images have shape"):
        write_tiles(tmp_path / "x", labels[:2], labels, TileSettings())
