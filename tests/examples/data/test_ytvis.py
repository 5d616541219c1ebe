"""The YouTube-VIS loader: what it reads, and that its errors name file, video and annotation."""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import json
import operator
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from defvis.data.dataset import hold_out
from defvis.data.sources import open_source
from defvis.data.ytvis import find_files, load
from defvis.decoding.errors import DataError
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


def test_what_is_null_or_empty_is_absent(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    first, second = content["annotations"]
    sliver, square = [5, 5, 7, 5], first["segmentations"][2][0]
    first |= {"iscrowd": 0.0, "bboxes": [], "areas": [None, None, 10**400],
              "segmentations": [first["segmentations"][0], [sliver], [sliver, square]]}  # fmt: skip
    second |= {"iscrowd": True, "areas": None,
               "segmentations": [[[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]], {},
                                 {"size": [6, 8], "counts": [48]}]}  # fmt: skip
    content["videos"][0] |= {"id": 7.0, "width": 8.0, "length": None}
    content["categories"][1]["name"] = 5
    data = load(*write_dataset(tmp_path, content))
    (track, crowd) = data.videos[0].tracks
    assert track.areas == (6, None, 12)
    assert [mask is None for mask in track.masks] == [False, True, False]
    assert (track.is_crowd, crowd.is_crowd) == (False, True)
    assert (crowd.masks, crowd.areas) == ((None,) * 3, (None,) * 3)
    assert data.category_names == ("5", "racket")
    assert data.notes == (
        f"{tmp_path / 'instances.json'}: a polygon with fewer than three corners was dropped "
        "(2 times)",
        f"{tmp_path / 'instances.json'}: an area larger than the frame was counted from the mask "
        "instead",
        f"{tmp_path / 'instances.json'}: a mask whose polygons hold no pixel was taken as absent "
        "(are they in pixels?)",
    )
    assert data.videos[0].frame(0).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        ([f"a\\{index}.jpg" for index in range(3)], r"a backslash in file_names .* \(3 times\)"),
        ([f"JPEGImages/a/{index}.jpg" for index in range(3)], "file_names lie below .*data$"),
        (
            [f"data/JPEGImages/a/{index}.jpg" for index in range(3)],
            r"lie below .*(?<!data)$",
        ),
    ],
)
def test_names_of_frames_as_other_tools_write_them(
    tmp_path: Path, names: list[str], note: str
) -> None:
    content = copy.deepcopy(CONTENT)
    content["videos"][0]["file_names"] = names
    data = load(*write_dataset(tmp_path / "data", content))
    assert re.search(note, data.notes[0])
    assert data.videos[0].frame(2)[0, 0, 0] < 10
    (tmp_path / "data/JPEGImages/a/0.jpg").unlink()
    load(*find_files(tmp_path / "data"))  # Missing frames are not the reader's to find.


def test_categories_of_one_name_are_noted(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"][0]["name"] = "lizard"
    (note,) = load(*write_dataset(tmp_path, content)).notes
    assert note.endswith("2 categories have the name 'lizard' and are kept apart")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"][0]["name"] = "猫 é"
    files = write_dataset(tmp_path, content)
    text = json.dumps(content, ensure_ascii=False, indent=1).replace("\n", "\r\n")
    files[0].write_bytes(text.encode(encoding))
    assert load(*files).category_names == ("lizard", "猫 é")
    files[0].write_bytes(text.replace("猫", "").encode("latin-1"))
    with pytest.raises(DataError, match=r"byte \d+ \(0xe9\) is not utf-8; save the file as UTF-8"):
        load(*files)


def test_files_without_annotations(tmp_path: Path) -> None:
    content = {key: CONTENT[key] for key in ("videos", "categories")}
    assert load(*write_dataset(tmp_path, content)).videos[0].tracks == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"videos": [], "videos": []}', "the field 'videos' appears twice in one object"),
        ('{"videos": [], "images": []}', "videos is empty"),
        ('{"images": [], "annotations": []}', "this is the format of COCO, of single images"),
        ('{"videos": [{"id": 1}], "images": []}', "this is the format of COCO, of single images"),
        ('{"sequences": [], "categories": []}', "this is the format of BURST, with sequences"),
        ('{"videos": {"003234408d": {"objects": {}}}}', "this is the meta.json of YouTube-VOS"),
        ('{"videos": [{"video_id": "1", "images": []}]}', "this is the format of VIPSeg"),
        ('{"shapes": [], "imagePath": "a.jpg"}', "this is a file of LabelMe"),
        ('{"videos": [{"id": 1, "length": 3}], "categories": [{"id": 1}]}',
         "video 1: file_names is missing"),
        ("[]", r"must hold an object, got \[\]"),
        ("<html>", "Expecting value.*; the file begins with '<html>'"),
    ],
)  # fmt: skip
def test_files_of_another_kind(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"x\.json: .*{message}"):
        load(file, tmp_path)


def test_annotations_of_single_images_and_archives(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["segmentation"] = content["annotations"][0].pop("segmentations")
    files = write_dataset(tmp_path, content)
    with pytest.raises(DataError, match="annotation 11: it has a segmentation, as COCO's single"):
        load(*files)
    with zipfile.ZipFile(files[0], "w") as archive:
        archive.writestr("instances.json", "{}")
    with pytest.raises(DataError, match="cannot be read as JSON: it is a zip archive"):
        load(*files)
    files[0].write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="cannot be read as JSON: it is compressed by gzip"):
        load(*files)


@pytest.mark.parametrize(
    ("video", "annotation", "category"),
    [
        # OVIS and YouTube-VIS 2021
        ({"license": 1, "coco_url": "", "flickr_url": "", "date_captured": "2020"},
         {"height": 6, "width": 8, "length": 3, "occlusion": ["no_occlusion"] * 3},
         {"supercategory": "object"}),
        # UVO
        ({"ytid": "x", "start_idx": 0, "label": "juggling"},
         {"height": 6, "width": 8, "category": "other"}, {"supercategory": "object"}),
        # LV-VIS
        ({"neg_category_ids": [2], "not_exhaustive_category_ids": []}, {"length": 3},
         {"partition": 1, "synset": "n.01"}),
    ],
    ids=["OVIS", "UVO", "LV-VIS"],
)  # fmt: skip
def test_fields_that_only_other_datasets_have(
    tmp_path: Path, video: dict[str, Any], annotation: dict[str, Any], category: dict[str, Any]
) -> None:
    content = copy.deepcopy(CONTENT)
    for rows, more in zip(
        (content["videos"], content["annotations"], content["categories"]),
        (video, annotation, category),
        strict=True,
    ):
        for row in rows:
            row |= more
    assert load(*write_dataset(tmp_path, content)).videos[0].tracks[0].areas == (6, None, 12)


VALUES = [None, True, 0, -1, 2.5, 1e308, float("nan"), 2**70, "", "0", "\ud800", [], {}, [[]],
          [1], [None] * 3, [[0, 0, 4, 0, 4, 3]], {"size": [6, 8], "counts": "`1"}]  # fmt: skip


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a file."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, (dict, list)):
            yield from _places(child, (*path, key))


def test_any_value_anywhere_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value in each place, and each place left out; nothing else than a DataError."""
    files = write_dataset(tmp_path, CONTENT)
    changed = copy.deepcopy(CONTENT)
    monkeypatch.setattr("defvis.data.ytvis.read_json", lambda *_: changed)
    read = 0
    for *path, key in list(_places(CONTENT)):
        parent = functools.reduce(operator.getitem, path, changed)  # type: ignore[arg-type]
        before = parent[key]
        for value in VALUES:
            parent[key] = value
            with contextlib.suppress(DataError):
                data = load(*files)
                assert all(type(track.is_crowd) is bool for track in data.videos[0].tracks)
                "".join(data.category_names).encode()
                read += 1
        parent[key] = before
    assert read > 100


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("annotations.0.segmentations", [None],
         "video 7, annotation 11: segmentations must have one entry per frame, 3, got 1"),
        ("annotations.0.bboxes", [None],
         "annotation 11: bboxes must have one entry per frame, 3, got 1"),
        ("annotations.0.areas", [1, 2, 3, 4],
         "annotation 11: areas must have one entry per frame, 3, got 4"),
        ("annotations.0.areas", {}, r"annotation 11: areas must be a list, got \{\}"),
        ("annotations.0.category_id", 5, "annotation 11: there is no category 5"),
        ("annotations.0.video_id", 8, "annotation 11: there is no video 8"),
        ("annotations.1.id", 11, "annotation 11: its id repeats"),
        ("videos.0.length", 4, "video 7: length is 4, but file_names has 3"),
        ("videos.0.file_names", [], "video 7: file_names is empty"),
        ("videos.0.height", 0, "width and height must be at least 1, got 8 x 0"),
        ("videos.0.file_names.1", 5, "video 7: file_names must hold names of files, got 5"),
        ("videos.0.file_names.1", "", "video 7: file_names must hold names of files, got ''"),
        ("videos.0.file_names.1", "a\0.jpg", r"must hold names of files, got 'a\\x00.jpg'"),
        ("videos.0.file_names.1", "\ud800.jpg", r"must hold names of files, got '\\ud800.jpg'"),
        ("videos.0", None, "videos must hold objects, got None at 0"),
        ("annotations.0.areas", [1, "2", 3],
         "annotation 11, frame 1: areas must hold numbers and nulls, got '2'"),
        ("annotations.0.segmentations.1", {"size": [6, 8]},
         "annotation 11, frame 1: segmentation must be RLE with size and counts"),
        ("annotations.0.areas", [1, 2, float("nan")], "frame 2: areas must be at least 0, got nan"),
        ("annotations.0.areas", [1, -2, 3], "frame 1: areas must be at least 0, got -2"),
        ("annotations.0.areas", [1, True, 3], "areas must hold numbers and nulls, got True"),
        ("videos.0.width", 2**40, "width x height must be at most 536870911 pixels"),
        ("annotations.0.video_id", True, "video_id must be an integer, got True"),
        ("categories.0.id", 3, "category ids repeat: 3"),
        ("categories.0.id", "3", r"categories\[0\]: id must be an integer, got '3'"),
        ("categories.0.name", [3], r"category 40: name must be text, got \[3\]"),
        ("categories.0.name", "\ud800", "category 40: name must be text"),
        ("categories.0", "dog", "categories must hold objects, got 'dog' at 0"),
        ("categories", [], "categories is empty"),
        ("videos", [], "videos is empty"),
        ("videos.0.id", None, r"videos\[0\]: id must be an integer, got None"),
        ("videos.0.width", "8", "video 7: width must be an integer, got '8'"),
        ("videos.0.width", 8.5, "video 7: width must be an integer, got 8.5"),
        ("videos.0.width", float("nan"), "video 7: width must be an integer, got nan"),
        ("videos.0.length", "3", "video 7: length must be an integer, got '3'"),
        ("annotations.0.id", "11", r"annotations\[0\]: id must be an integer, got '11'"),
        ("annotations.0.segmentations", None, "annotation 11: segmentations must be a list"),
        ("annotations.0.segmentations", {"0": "x" * 9999}, r"must be a list, got .{,80}$"),
        ("annotations.0.iscrowd", "0", "video 7, annotation 11: iscrowd must be 0 or 1, got '0'"),
        ("annotations.0.iscrowd", [0, 0, 0], "annotation 11: iscrowd must be 0 or 1"),
        ("annotations.0.iscrowd", 0.5, "annotation 11: iscrowd must be 0 or 1, got 0.5"),
        ("annotations.0.iscrowd", 2, "annotation 11: iscrowd must be 0 or 1, got 2"),
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
    with pytest.raises(DataError, match=r"holds none of instances.json.*; found nothing$"):
        find_files(tmp_path)
    with pytest.raises(DataError, match=r"there is no file or folder .*x$"):
        find_files(tmp_path / "x")
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
