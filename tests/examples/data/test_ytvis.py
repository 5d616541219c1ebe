"""The YouTube-VIS loader: what it reads, and that its errors name file, video and annotation."""

from __future__ import annotations

import copy
import functools
import operator
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from defvis.data.errors import DataError
from defvis.data.sources import open_source
from defvis.data.ytvis import find_files, hold_out, load
from tests.examples.data.small_dataset import CONTENT, write_dataset


def test_reads_every_form(tmp_path: Path) -> None:
    data = load(*write_dataset(tmp_path, CONTENT))
    assert data.category_ids == (3, 40)
    assert data.category_names == ("lizard", "racket")
    (video,) = data.videos
    first, second = video.tracks
    assert (first.id, first.label, first.is_crowd) == (11, 1, False)
    assert (second.id, second.label, second.is_crowd) == (12, 0, True)
    assert [mask is None for mask in first.masks] == [False, True, False]
    assert first.areas == (6, None, 12)
    assert second.areas == (None, None, None)
    assert video.frame(2).shape == (6, 8, 3)


def test_fields_that_may_be_missing(tmp_path: Path) -> None:
    """No bboxes, areas, iscrowd or length; the masks say it all."""
    content = copy.deepcopy(CONTENT)
    for name in ("bboxes", "areas", "iscrowd"):
        del content["annotations"][0][name]
    content["annotations"][0]["bboxes"] = None
    del content["videos"][0]["length"], content["categories"][1]["name"]
    data = load(*write_dataset(tmp_path, content))
    (track, _) = data.videos[0].tracks
    assert track.areas == (6, None, 12)
    assert not track.is_crowd
    assert data.category_names == ("3", "racket")


def test_files_without_annotations(tmp_path: Path) -> None:
    content = {key: CONTENT[key] for key in ("videos", "categories")}
    assert load(*write_dataset(tmp_path, content)).videos[0].tracks == ()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("annotations.0.segmentations", [None],
         "video 7, annotation 11: segmentations must have one entry per frame, 3, got 1"),
        ("annotations.0.bboxes", [None],
         "annotation 11: bboxes must have one entry per frame, 3, got 1"),
        ("annotations.0.areas", [1, 2, 3, 4],
         "annotation 11: areas must have one entry per frame, 3, got 4"),
        ("annotations.0.category_id", 5, "annotation 11: there is no category 5"),
        ("annotations.0.video_id", 8, "annotation 11: there is no video 8"),
        ("annotations.1.id", 11, "annotation 11: its id repeats"),
        ("videos.0.length", 4, "video 7: length is 4, but file_names has 3"),
        ("videos.0.file_names", [], "video 7: file_names is empty"),
        ("videos.0.height", 0, "width and height must be at least 1, got 8 x 0"),
        ("videos.0.file_names.1", 5, "video 7: file_names must hold strings"),
        ("videos.0", None, "videos must hold objects, got NoneType"),
        ("annotations.0.areas", [1, "2", 3], "annotation 11: areas must hold numbers and nulls"),
        ("annotations.0.segmentations.1", {"size": [6, 8]},
         "annotation 11, frame 1: segmentation must be RLE with size and counts"),
        ("annotations.0.areas", [1, 2, float("nan")], "areas must be finite"),
        ("annotations.0.areas", [1, 2, 10**400], "areas must be finite"),
        ("annotations.0.areas", [1, -2, 3], "areas must be finite and at least 0"),
        ("videos.0.width", 2**40, "width x height must be at most 536870911 pixels"),
        ("annotations.0.video_id", True, "video_id must be an integer, got True"),
        ("categories.0.id", 3, "category ids repeat"),
        ("videos", 3, "videos must be a list, got 3"),
    ],
)  # fmt: skip
def test_errors_name_the_place(tmp_path: Path, field: str, value: Any, message: str) -> None:
    content = copy.deepcopy(CONTENT)
    *parents, last = (int(key) if key.isdecimal() else key for key in field.split("."))
    functools.reduce(operator.getitem, parents, content)[last] = value  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        load(*write_dataset(tmp_path, content))
    assert "instances.json" in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of instances.json"):
        find_files(tmp_path)
    files = write_dataset(tmp_path, CONTENT)
    video = load(*files).videos[0]
    frame = tmp_path / "JPEGImages/a/1.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    with pytest.raises(DataError, match=r"video 7, frame 1: cannot read .*1\.jpg"):
        video.frame(1)
    Image.new("RGB", (9, 6)).save(frame)
    with pytest.raises(DataError, match=r"1\.jpg must be 8 x 6 pixels, got 9 x 6"):
        video.frame(1)
    frame.unlink()
    with pytest.raises(DataError, match="video 7, frame 1: cannot read"):
        video.frame(1)
    with pytest.raises(DataError, match=r"video 7, frame 0: cannot read .*null byte"):
        replace(video, files=(tmp_path / "a\0.jpg",)).frame(0)
    files[0].write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"instances\.json: cannot be read as JSON"):
        load(*files)
    files[0].write_text("{")
    with pytest.raises(DataError, match=r"instances\.json: cannot be read as JSON"):
        load(*files)


def test_a_picture_that_claims_a_huge_size(tmp_path: Path) -> None:
    """A hundred bytes that would unpack to gigabytes."""
    video = load(*write_dataset(tmp_path, CONTENT)).videos[0]
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(50))))
    )
    folder = tmp_path / "bomb"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(DataError, match=r"video 7, frame 0: cannot read .*0\.png: Image size"):
        replace(video, files=(folder / "0.png",)).frame(0)
    with pytest.raises(DataError, match=r"cannot read .*0\.png: Image size"):
        open_source(folder)


def test_hold_out(digits: Path) -> None:
    data = load(*find_files(digits / "train"))
    train, val = hold_out(data, 10)
    assert [video.id for video in val.videos] == [10, 20]
    assert len(train.videos) == 22
    with pytest.raises(DataError, match="too few"):
        hold_out(data, 100)
