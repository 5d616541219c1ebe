"""The YouTube-VIS loader: what it reads, and that its errors name file, video and annotation."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defvis.config import DataConfig
from defvis.data.clips import ClipDataset, FrameCache, collate
from defvis.data.sampling import EndlessSampler
from defvis.data.ytvis import DataError, find_files, hold_out, load

CONTENT: dict[str, Any] = {
    "videos": [
        {
            "id": 7,
            "width": 8,
            "height": 6,
            "length": 3,
            "file_names": ["a/0.jpg", "a/1.jpg", "a/2.jpg"],
        },
    ],
    "categories": [{"id": 40, "name": "racket"}, {"id": 3, "name": "lizard"}],
    "annotations": [
        {
            "id": 11,
            "video_id": 7,
            "category_id": 40,
            "iscrowd": 0,
            "segmentations": [
                {"size": [6, 8], "counts": [0, 6, 42]},
                None,
                [[0, 0, 4, 0, 4, 3, 0, 3]],
            ],
            "bboxes": [[0, 0, 1, 6], None, [0, 0, 4, 3]],
            "areas": [6, None, 12],
        },
        {
            "id": 12,
            "video_id": 7,
            "category_id": 3,
            "iscrowd": 1,
            "segmentations": [None, None, None],
        },
    ],
}


def _write(root: Path, content: object) -> tuple[Path, Path]:
    (root / "JPEGImages" / "a").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (8, 6), (index, 100, 200)).save(root / "JPEGImages" / f"a/{index}.jpg")
    (root / "instances.json").write_text(json.dumps(content))
    return find_files(root)


def test_reads_every_form(tmp_path: Path) -> None:
    data = load(*_write(tmp_path, CONTENT))
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


def test_files_without_annotations(tmp_path: Path) -> None:
    content = {key: CONTENT[key] for key in ("videos", "categories")}
    assert load(*_write(tmp_path, content)).videos[0].tracks == ()


def _set(path: list[Any], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _set(["annotations", 0, "segmentations"], [None]),
            "video 7, annotation 11: segmentations must have one entry per frame, 3, got 1",
        ),
        (
            _set(["annotations", 0, "bboxes"], [None]),
            "annotation 11: bboxes must have one entry per frame, 3, got 1",
        ),
        (
            _set(["annotations", 0, "areas"], [1, 2, 3, 4]),
            "annotation 11: areas must have one entry per frame, 3, got 4",
        ),
        (
            _set(["annotations", 0, "segmentations", 0, "size"], [8, 6]),
            r"annotation 11, frame 0: segmentation must have size \[6, 8\]",
        ),
        (
            _set(["annotations", 0, "segmentations", 0, "counts"], [0, 6]),
            "annotation 11, frame 0: RLE counts must add up to 48",
        ),
        (_set(["annotations", 0, "category_id"], 5), "annotation 11: there is no category 5"),
        (_set(["annotations", 0, "video_id"], 8), "annotation 11: there is no video 8"),
        (_set(["annotations", 1, "id"], 11), "annotation 11: its id repeats"),
        (_set(["annotations", 0, "id"], "x"), "annotation: id must be an integer, got 'x'"),
        (_set(["videos", 0, "length"], 4), "video 7: length is 4, but file_names has 3"),
        (_set(["videos", 0, "file_names"], []), "video 7: file_names is empty"),
        (_set(["videos", 0, "width"], None), "width must be an integer, got None"),
        (_set(["categories", 0, "id"], 3), "category ids repeat"),
        (_set(["videos"], 3), "videos must be a list, got 3"),
    ],
)
def test_errors_name_the_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = copy.deepcopy(CONTENT)
    change(content)
    with pytest.raises(DataError, match=message) as caught:
        load(*_write(tmp_path, content))
    assert "instances.json" in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of instances.json"):
        find_files(tmp_path)
    files = _write(tmp_path, CONTENT)
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
    files[0].write_text("{")
    with pytest.raises(DataError, match=r"instances\.json: cannot be read as JSON"):
        load(*files)


def test_clips_leave_out_crowds_and_absent_objects(tmp_path: Path) -> None:
    data = load(*_write(tmp_path, CONTENT))
    still = DataConfig(reverse=0, permute_channels=0, brightness=0)
    clip = ClipDataset(data, 3, still, 0, FrameCache(1))[0, 0]
    assert clip.targets.labels.tolist() == [1]
    assert clip.targets.valid.tolist() == [[True, False, True]]
    np.testing.assert_allclose(clip.targets.boxes[0, 0], [1 / 16, 0.5, 1 / 8, 1.0])
    assert not clip.targets.boxes[0, 1].any()
    assert clip.frames.shape == (3, 3, 6, 8)
    seen = {
        tuple(ClipDataset(data, 1, still, 0, FrameCache(0))[epoch, 0].targets.valid.shape)
        for epoch in range(12)
    }
    assert seen == {(1, 1), (0, 1)}, "single frames with and without the object"


def test_resizing_and_padding(tmp_path: Path) -> None:
    data = load(*_write(tmp_path, CONTENT))
    still = DataConfig(short_side=12, reverse=0, permute_channels=0, brightness=0)
    long = ClipDataset(data, 3, still, 0, FrameCache(1))[0, 0]
    assert long.frames.shape == (3, 3, 12, 16)
    assert long.targets.masks[0, 0].sum() == 24
    short = ClipDataset(data, 2, DataConfig(), 0, FrameCache(1))[0, 0]
    batch = collate([long, short])
    assert batch.frames.shape == (2, 3, 3, 12, 16)
    assert batch.padding_mask is not None
    assert not batch.padding_mask[0].any()
    assert (~batch.padding_mask[1]).sum() == 2 * 6 * 8
    assert not batch.frames[1][batch.padding_mask[1][:, None].expand(-1, 3, -1, -1)].any()
    assert batch.targets[1].valid.shape[1] == 3
    assert collate([long, long]).padding_mask is None


def test_draws_depend_on_seed_and_epoch_only(digits: Path) -> None:
    data = load(*find_files(digits / "train"))
    cached = ClipDataset(data, 3, DataConfig(), 0, FrameCache(100))
    uncached = ClipDataset(data, 3, DataConfig(), 0, FrameCache(0))
    for key in ((0, 0), (1, 0), (0, 5), (0, 0)):
        assert cached[key].frames.equal(uncached[key].frames)
    assert not cached[0, 0].frames.equal(cached[1, 0].frames)


def test_sampler_goes_on_where_it_stopped() -> None:
    whole = list(EndlessSampler(7, 3, 0, 40))
    assert whole[23:] == list(EndlessSampler(7, 3, 23, 17))
    for epoch in range(5):
        assert sorted(i for e, i in whole if e == epoch) == list(range(7))
    assert [i for _, i in whole[:7]] != [i for _, i in whole[7:14]]


def test_hold_out(digits: Path) -> None:
    data = load(*find_files(digits / "train"))
    train, val = hold_out(data, 10)
    assert [video.id for video in val.videos] == [10, 20]
    assert len(train.videos) == 22
    with pytest.raises(DataError, match="too few"):
        hold_out(data, 100)
