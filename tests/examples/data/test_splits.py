"""Which folders and files become training and validation videos, and what is said of the others."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from defvis.data.splits import load_splits
from defvis.decoding.errors import DataError
from tests.examples.data.small_dataset import CONTENT, write_dataset


def _content(videos: int = 4, **changes: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content["videos"] = [{**content["videos"][0], "id": 7 + index} for index in range(videos)]
    return {**content, **changes}


def _write(root: Path, **contents: dict[str, Any]) -> None:
    for name, content in contents.items():
        write_dataset(root / name, content)


def _counts(root: Path) -> tuple[int, int, tuple[str, ...]]:
    train, val, notes = load_splits(root, 2)
    return (
        len(train.videos),
        len(val.videos),
        tuple(note.replace(str(root), "DATA") for note in notes),
    )


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_usual_names_of_folders(tmp_path: Path, train: str, val: str) -> None:
    _write(tmp_path, **{train: _content(4), val: _content(3)})
    assert _counts(tmp_path) == (4, 3, ())


def test_what_has_no_annotations_does_not_validate(tmp_path: Path) -> None:
    """The official downloads: valid/ and test/ come without."""
    _write(tmp_path, train=_content(4), valid=_content(3, annotations=None), test=_content(2))
    held = "every 2th training video is held out"
    notes = ("DATA/test is not used", f"valid in DATA without annotations cannot validate: {held}")
    assert _counts(tmp_path) == (2, 2, notes)
    (tmp_path / "valid/instances.json").unlink()
    assert _counts(tmp_path) == (2, 2, notes)
    _write(tmp_path, val=_content(1))
    assert _counts(tmp_path) == (4, 1, notes[:1])
    shutil.copy(tmp_path / "val/instances.json", tmp_path / "valid")
    with pytest.raises(DataError, match="more than one validation split: val, valid; leave one"):
        load_splits(tmp_path, 2)


def test_without_validation_videos_and_a_single_split(tmp_path: Path) -> None:
    _write(tmp_path, train=_content(4), train_2=_content(4))
    held = "every 2th training video is held out"
    assert _counts(tmp_path) == (2, 2, (
        "DATA/train_2 is not used",
        f"DATA has no validation videos (val, valid, validation, dev): {held}"))  # fmt: skip
    assert _counts(tmp_path / "train") == (2, 2, (f"DATA is a single split: {held}",))


@pytest.mark.parametrize(
    ("frames", "file"),
    [
        ("{}/JPEGImages", "{}.json"),
        ("{}/JPEGImages", "annotations/instances_{}_sub.json"),
        ("{}", "annotations_{}.json"),
        ("JPEGImages/{}", "{}_instances.json"),
        ("{}/JPEGImages", "{}/some_name.json"),
        ("JPEGImages", "Annotations/youtube_vis_2021_{}.json"),
    ],
)
def test_usual_places_of_annotations_and_frames(tmp_path: Path, frames: str, file: str) -> None:
    for split, videos in (("train", 4), ("valid", 3)):
        made = tmp_path / "made"
        write_dataset(made, _content(videos))
        for source, place in (("JPEGImages", frames), ("instances.json", file)):
            target = tmp_path / "data" / place.format(split)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (made / source).rename(target)
        made.rmdir()
    if (tmp_path / "data/train").is_dir():  # Where YouTube-VOS was unpacked too.
        (tmp_path / "data/train/meta.json").write_text('{"videos": {}}')
    assert _counts(tmp_path / "data") == (4, 3, ())
    assert load_splits(tmp_path / "data", 2)[0].videos[0].frame(1).shape == (6, 8, 3)


def test_what_is_looked_for_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_splits(tmp_path / "x", 2)
    _write(tmp_path, train2019=_content())
    with pytest.raises(DataError, match=r"looked for train and training, .*; found train2019/$"):
        load_splits(tmp_path, 2)
    (tmp_path / "train2019").rename(tmp_path / "train")
    (tmp_path / "Training").mkdir()
    with pytest.raises(DataError, match="more than one folder for the same split: Training, train"):
        load_splits(tmp_path, 2)
    (tmp_path / "Training").rmdir()
    (tmp_path / "train/instances.json").rename(tmp_path / "train/a.json")
    shutil.copy(tmp_path / "train/a.json", tmp_path / "train/b.json")
    with pytest.raises(DataError, match=r"more than one other JSON file: a.json, b.json; rename"):
        load_splits(tmp_path, 2)
    (tmp_path / "train/a.json").write_text(json.dumps(_content(annotations=[])))
    (tmp_path / "train/b.json").unlink()
    with pytest.raises(DataError, match=r"a\.json has no annotations: nothing can be learned"):
        load_splits(tmp_path, 2)


def test_splits_must_have_the_same_categories(tmp_path: Path) -> None:
    other = _content()
    other["categories"][0]["name"] = "bat"
    _write(tmp_path, train=_content(), val=other)
    with pytest.raises(
        DataError,
        match=r"differ: class 1 is 'racket' \(id 40\) in one and 'bat' \(id 40\) in the other",
    ):
        load_splits(tmp_path, 2)
