"""What --check-data finds in data with mistakes, and that the documented form of data has none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defvis.config import Config
from defvis.data import rle
from defvis.data.clips import ClipDataset, FrameCache, as_pictures, normalise
from defvis.data.dataset import YouTubeVIS
from defvis.data.splits import load_splits
from defvis.data.ytvis import find_files, load
from defvis.inspection.check_data import CHECK_FILES, DataCheck, check_data
from defvis.inspection.contact_sheet import save_contact_sheet
from tests.examples.support import EXAMPLES, changed, program

GUIDE = (EXAMPLES.parent / "docs" / "guide" / "own-data.md").read_text()


def _block(language: str) -> str:
    """The only block of code of a language in the guide."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return str(block)


def _write_split(folder: Path, content: dict[str, Any], seed: int) -> None:
    """An annotation file, and noise for its frames."""
    random = np.random.default_rng(seed)
    for video in content["videos"]:
        for name in video["file_names"]:
            file = folder / "JPEGImages" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (video["height"], video["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    (folder / "instances.json").write_text(json.dumps(content))


def _check(root: Path, out: Path, config: Config) -> DataCheck:
    out.mkdir()
    train, val, notes = load_splits(root, 10)
    return check_data(train, val, config, out, notes, progress=False)


def test_the_documented_file_is_read(tmp_path: Path, config: Config) -> None:
    content = json.loads(_block("json"))
    for seed, split in enumerate(("train", "val")):
        _write_split(tmp_path / split, content, seed)
    data = load(*find_files(tmp_path / "train"))
    assert data.notes == ()
    present = [[sorted(track.present) for track in video.tracks] for video in data.videos]
    assert present == [[[0, 2]], [[0, 1]]]
    boxes = [rle.box(mask) for video in data.videos for mask in video.tracks[0].present.values()]
    assert boxes == [(10, 8, 30, 28), (14, 8, 30, 28), (20, 15, 4, 10), (21, 15, 4, 10)]
    found = _check(tmp_path, tmp_path / "out", config)
    assert found.refused == 0
    assert re.findall(r"^  (\w+) +1 in 1 video +1 in 1 video$", found.text, re.MULTILINE) == [
        "cat", "ball",
    ]  # fmt: skip
    assert "2 odd entries" in found.text
    assert "classes with fewer than 10 objects to train on (2):" in found.text


def test_the_documented_function_writes_masks(tmp_path: Path) -> None:
    names: dict[str, Callable[..., dict[str, Any]]] = {}
    exec(compile(_block("python"), "own-data.md", "exec"), names)
    masks = np.random.default_rng(0).random((4, 48, 64)) < 0.5
    masks[0], masks[1] = False, True
    content = json.loads(_block("json"))
    content["videos"] = [{**content["videos"][0], "file_names": list("abcd")}]
    content["annotations"] = [names["annotation"](5, 1, 2, masks)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    (track,) = load(tmp_path / "a.json", tmp_path).videos[0].tracks
    assert (track.id, track.label, sorted(track.present)) == (5, 1, [1, 2, 3])
    for frame, mask in track.present.items():
        np.testing.assert_array_equal(rle.decode(mask), masks[frame])


def _break(root: Path) -> None:
    """Puts one mistake of each kind into a copy of the digits."""
    files = {split: root / split / "instances.json" for split in ("train", "val")}
    content = {split: json.loads(file.read_text()) for split, file in files.items()}

    def frame(number: int, index: int, split: str = "train") -> Path:
        return root / split / "JPEGImages" / f"{number:05d}" / f"{index:05d}.jpg"

    whole = frame(1, 2).read_bytes()
    frame(1, 2).write_bytes(whole[: len(whole) // 2])
    frame(2, 1).unlink()
    Image.new("RGB", (32, 24)).save(frame(3, 1))
    Image.new("RGB", (64, 48)).save(frame(4, 1))
    shutil.copy(frame(5, 0), frame(5, 1))
    for index in range(4):
        shutil.copy(frame(6, index), frame(7, index))
        shutil.copy(frame(8, index), frame(2, index, "val"))
    train = content["train"]
    train["annotations"] = [row for row in train["annotations"] if row["video_id"] != 9]
    train["videos"][9]["file_names"].reverse()
    for each in content.values():
        each["categories"].append({"id": 11, "name": "unknown"})
    content["val"]["annotations"][0]["category_id"] = 11
    for split, file in files.items():
        file.write_text(json.dumps(content[split]))


def test_mistakes_are_found_and_reading_goes_on(
    digits: Path, tmp_path: Path, config: Config
) -> None:
    shutil.copytree(digits, tmp_path / "data")
    _break(tmp_path / "data")
    found = _check(tmp_path / "data", tmp_path / "out", config)
    assert found.refused == 3
    place = re.escape(str(tmp_path / "data/train/JPEGImages"))
    for line in (
        rf"train video 1, frame 2: cannot read {place}/00001/00002.jpg: .*truncated.*",
        rf"train video 2, frame 1: cannot read {place}/00002/00001.jpg: no such file",
        rf"train video 3, frame 1: {place}/00003/00001.jpg must be 64 x 48 pixels, got 32 x 24",
        "train video 4: 1 of 4, the first is frame 1",
        "train video 5: 1 of 4, the first is frame 1",
        "train video 6 and train video 7: 4 the same, first frames 0 and 0",
        "train video 8 and val video 2: 4 the same, first frames 0 and 0",
        "train video 9",
        r"train video 10: 00003.jpg, 00002.jpg, \.\.\.",
        "unknown: 1 to validate on",
    ):
        assert re.search(rf"^    {line}$", found.text, re.MULTILINE), line
    assert (tmp_path / "out" / CHECK_FILES[0]).exists()


def test_findings_of_a_kind_are_counted_and_all_in_the_file(
    digits: Path, tmp_path: Path, config: Config
) -> None:
    shutil.copytree(digits, tmp_path / "data")
    for file in (tmp_path / "data").rglob("*.jpg"):
        file.unlink()
    config = changed(config, "data.workers=1")
    found = _check(tmp_path / "data", tmp_path / "out", config)
    assert found.refused == 30 * 4
    assert re.search(r"frames that cannot be read \(120\):\n(    .*\n){5}    and 115 more\n",
                     found.text)  # fmt: skip
    assert "no contact sheet: no video can be read" in found.text
    lines = (tmp_path / "out" / CHECK_FILES[1]).read_text().splitlines()
    assert sum("No such file" in line or "no such file" in line for line in lines) == 120


def test_the_sheet_shows_what_is_trained_on(tmp_path: Path, config: Config) -> None:
    """Without objects, nothing but the clip's own pixels is drawn."""
    content = json.loads(_block("json"))
    content["annotations"] = []
    _write_split(tmp_path, content, 0)
    data = load(*find_files(tmp_path)).first(1)
    config = changed(config, "model.num_frames=3", "data.flip=1.0", "data.reverse=1.0")
    save_contact_sheet(data, config, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    clip = ClipDataset(data, 3, config.data, config.seed, FrameCache(0))[0, 0]
    plain = np.stack([data.videos[0].frame(frame) for frame in range(3)])
    top, side = 20 + 17, 5
    for row, pictures in enumerate((plain, as_pictures(clip.frames))):
        for column, picture in enumerate(pictures):
            y, x = top + row * (48 * side + 17), 20 + column * 322
            drawn = sheet[y : y + 48 * side : side, x : x + 64 * side : side]
            np.testing.assert_array_equal(drawn, picture)
    assert not np.array_equal(plain, as_pictures(clip.frames))


def test_pictures_come_back_from_normalised_frames() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(as_pictures(normalise(pixels)), pixels)


def test_the_sheet_shows_rare_classes(digits: Path, tmp_path: Path, config: Config) -> None:
    data = load(*find_files(digits / "train"))
    rare = data.videos[17]
    rare = replace(rare, tracks=tuple(replace(track, label=10) for track in rare.tracks))
    data = YouTubeVIS(
        (*data.videos[:17], rare, *data.videos[18:]), (*data.category_ids, 99),
        (*data.category_names, "rare"),
    )  # fmt: skip
    file = tmp_path / "sheet.png"
    counts = save_contact_sheet(data, config, file)
    held = {track.label for video in data.videos for track in video.tracks if track.present}
    assert (counts.clips, counts.classes) == (12, len(held))
    with Image.open(file) as sheet:
        assert sheet.width <= 2000
    assert save_contact_sheet(data, config, file, clips=1).clips == 1
    others = {video.id for video in data.videos} - {rare.id}
    alone = save_contact_sheet(data, config, file, leave_out=others)
    assert (alone.clips, alone.classes) == (1, 1)


def test_program(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag reads and does not train; what is refused decides the exit status."""
    out = tmp_path / "out"
    program("train_defvis")(["--data", str(digits), "--out", str(out), "--check-data"])
    assert "contact sheet" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["data-check.png", "data-check.txt"]
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    frame = next((data / "train" / "JPEGImages").rglob("*.jpg"))
    frame.write_bytes(frame.read_bytes()[:200])
    with pytest.raises(SystemExit) as ended:
        program("train_defvis")(["--data", str(data), "--out", str(out), "--check-data"])
    assert frame.name in capsys.readouterr().out
    assert ended.value.code == 1
