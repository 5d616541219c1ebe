"""The YouTube-VIS loader: what it reads, and that its errors name file, video and annotation."""

from __future__ import annotations

import copy
import itertools
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from defvis.config import DataConfig
from defvis.data import rle
from defvis.data.augment import augment_clip
from defvis.data.clips import ClipDataset, FrameCache, collate
from defvis.data.resize_crop import draw_resize_crop, network_size
from defvis.data.sampling import EndlessSampler
from defvis.data.sources import open_source
from defvis.data.ytvis import DataError, find_files, hold_out, load

CONTENT: dict[str, Any] = {
    "videos": [
        {
            "id": 7,
            "width": 8,
            "height": 6,
            "length": 3,
            "file_names": ["a/0.jpg", "a/1.jpg", "a/2.jpg"],
        }
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


def test_fields_that_may_be_missing(tmp_path: Path) -> None:
    """No bboxes, areas, iscrowd or length; the masks say it all."""
    content = copy.deepcopy(CONTENT)
    for name in ("bboxes", "areas", "iscrowd"):
        del content["annotations"][0][name]
    content["annotations"][0]["bboxes"] = None
    del content["videos"][0]["length"], content["categories"][1]["name"]
    data = load(*_write(tmp_path, content))
    (track, _) = data.videos[0].tracks
    assert track.areas == (6, None, 12)
    assert not track.is_crowd
    assert data.category_names == ("3", "racket")


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
        (_set(["videos", 0, "height"], 0), "width and height must be at least 1, got 8 x 0"),
        (_set(["videos", 0, "file_names", 1], 5), "video 7: file_names must hold strings"),
        (_set(["videos", 0], None), "videos must hold objects, got NoneType"),
        (
            _set(["annotations", 0, "areas"], [1, "2", 3]),
            "annotation 11: areas must hold numbers and nulls",
        ),
        (
            _set(["annotations", 0, "segmentations", 1], {"size": [6, 8]}),
            "annotation 11, frame 1: segmentation must be RLE with size and counts",
        ),
        (_set(["annotations", 0, "areas"], [1, 2, float("nan")]), "areas must be finite"),
        (_set(["annotations", 0, "areas"], [1, 2, 10**400]), "areas must be finite"),
        (_set(["annotations", 0, "areas"], [1, -2, 3]), "areas must be finite and at least 0"),
        (_set(["videos", 0, "width"], 2**40), "width x height must be at most 536870911 pixels"),
        (_set(["annotations", 0, "video_id"], True), "video_id must be an integer, got True"),
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
    video = load(*_write(tmp_path, CONTENT)).videos[0]
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


def test_sizes_vary_on_wide_video() -> None:
    """The limit on the long side may not make all short sides one size."""
    config = DataConfig(short_sides=(240, 300, 360), long_side=480)
    random = np.random.default_rng(0)
    sizes = {draw_resize_crop(random, 720, 1280, config).size for _ in range(50)}
    assert sizes == {(270, 480), (225, 400), (180, 320)}
    for height, width in sizes:
        assert width / height == pytest.approx(16 / 9, rel=0.01)
    assert network_size(720, 1280, DataConfig(short_side=300, long_side=480)) == (270, 480)
    assert network_size(720, 1280, DataConfig(short_side=300)) == (300, 533)
    assert network_size(5, 400, DataConfig(long_side=40)) == (1, 40)


def test_crops_cut_frames_and_masks_alike(tmp_path: Path) -> None:
    """A bright object on black: its mask, box and pixels agree in every crop and scale."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[4:10, 6:16] = 255
    mask = pixels[..., 0] > 0
    content = copy.deepcopy(CONTENT)
    content["videos"][0].update(width=30, height=20)
    other = [[26, 16, 29, 16, 29, 19, 26, 19]]
    for annotation, form in zip(content["annotations"], (rle.to_json(rle.encode(mask)), other),
                                strict=True):  # fmt: skip
        annotation.update(segmentations=[form, None, form], areas=None, bboxes=None, iscrowd=0)
    files = _write(tmp_path, content)
    for index in range(3):
        Image.fromarray(pixels * (index != 1)).save(tmp_path / f"JPEGImages/a/{index}.jpg",
                                                    quality=98)  # fmt: skip
    config = DataConfig(short_sides=(24, 36, 48), crop=1.0, crop_share=(0.4, 0.9), flip=0.5,
                        reverse=0.0, permute_channels=0.0, brightness=0.0)  # fmt: skip
    dataset = ClipDataset(load(*files), 3, config, 0, FrameCache(1))
    counts, sizes = set(), set()
    for epoch in range(40):
        clip = dataset[epoch, 0]
        targets = clip.targets
        counts.add(len(targets.labels))
        sizes.add(clip.frames.shape[2:])
        assert targets.masks.flatten(2).any(-1).equal(targets.valid)
        assert targets.valid.any(1).all(), "an object that the crop leaves out is dropped"
        for label, masks, boxes in zip(targets.labels, targets.masks, targets.boxes, strict=True):
            rows, columns = np.nonzero(masks[0].numpy())
            height, width = masks.shape[1:]
            assert boxes[0].numpy() == pytest.approx([
                (columns.min() + columns.max() + 1) / 2 / width,
                (rows.min() + rows.max() + 1) / 2 / height,
                (columns.max() + 1 - columns.min()) / width,
                (rows.max() + 1 - rows.min()) / height,
            ])  # fmt: skip
            assert not boxes[1].any()
            if label == 1:
                inside = clip.frames[0, 0] > clip.frames[0, 0].median() + 1
                assert (inside == masks[0]).float().mean() > 0.9
    assert counts == {0, 1, 2}
    assert len(sizes) > 20


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_once_per_clip_and_are_clipped(field: str) -> None:
    """Equal frames stay equal; white never wraps round to black."""
    still = {"reverse": 0.0, "permute_channels": 0.0, "brightness": 0.0}
    limit = 120.0 if field == "hue" else 0.9
    config = DataConfig(**{**still, field: limit})  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    frame[0, 0], frame[0, 1] = 255, 0
    clip = np.stack([frame] * 4)
    masks = np.ones((1, 4, 8, 8), dtype=bool)
    outcomes = []
    for _ in range(20):
        changed, same = augment_clip(clip, masks, config, random)
        assert (changed == changed[0]).all(), "every frame changes alike"
        assert changed[0, 0, 0].min() >= changed[0, 0, 1].max(), "white stays lighter than black"
        np.testing.assert_array_equal(same, masks)
        outcomes.append(changed)
    assert max(np.abs(o.astype(int) - clip.astype(int)).max() for o in outcomes) > 40
    if field in ("saturation", "hue"):
        grey = np.full((1, 4, 4, 3), 100, dtype=np.uint8)
        changed, _ = augment_clip(grey, masks, config, random)
        assert np.abs(changed.astype(int) - 100).max() <= 1, "greys stay"


def test_each_change_of_colour_has_its_probability() -> None:
    """Brightness moves greys, saturation only what is coloured: both, one or none can be seen."""
    config = DataConfig(reverse=0, permute_channels=0, recolour=0.3, brightness=0.5, saturation=0.9)
    random = np.random.default_rng(0)
    clip = np.array([[[[100, 100, 100], [140, 100, 60]]]], dtype=np.uint8)
    counts = dict.fromkeys(itertools.product((False, True), repeat=2), 0)
    for _ in range(1000):
        changed, _ = augment_clip(clip, np.zeros((0, 1, 1, 2), dtype=bool), config, random)
        grey, coloured = changed[0, 0].astype(int)
        spread = (coloured[0] - coloured[2]) / (80 * grey[0] / 100)
        counts[bool(abs(grey[0] - 100) > 1), bool(abs(spread - 1) > 0.04)] += 1
    for (lit, faded), count in counts.items():
        wanted = (0.3 if lit else 0.7) * (0.3 if faded else 0.7)
        assert count / 1000 == pytest.approx(wanted, abs=0.05), (lit, faded)


def test_clips_never_jump_in_time(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"] = []
    files = _write(tmp_path, content)
    for index in range(3):
        Image.new("RGB", (8, 6), (60 * index,) * 3).save(tmp_path / f"JPEGImages/a/{index}.jpg")
    still = DataConfig(reverse=0, permute_channels=0, brightness=0)
    for length, wanted in ((2, {(0, 1), (1, 2)}), (3, {(0, 1, 2)}), (9, {(0, 1, 2)})):
        dataset = ClipDataset(load(*files), length, still, 0, FrameCache(1))
        clips = [dataset[epoch, 0].frames for epoch in range(20)]
        shown = {tuple(((f[:, 0, 0, 0] * 0.229 + 0.485) * 255 / 60).round().int().tolist())
                 for f in clips}  # fmt: skip
        assert shown == wanted


def test_workers_change_nothing(digits: Path) -> None:
    data = load(*find_files(digits / "train"))
    config = DataConfig(short_sides=(40, 48), crop=0.5, hue=20.0)
    batches = []
    for workers in (0, 2):
        dataset = ClipDataset(data, 2, config, 0, FrameCache(1))
        sampler = EndlessSampler(len(dataset), 0, 0, 8)
        loader = DataLoader(dataset, 4, sampler=sampler, collate_fn=collate, num_workers=workers)
        batches.append(list(loader))
    for one, other in zip(*batches, strict=True):
        assert one.frames.equal(other.frames)


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
    parts = [list(EndlessSampler(7, 3, 8, 32, rank, 4)) for rank in range(4)]
    assert sorted(whole[8:]) == sorted(key for part in parts for key in part)
    for step in range(4):  # of two clips in each of four processes
        together = {key for part in parts for key in part[2 * step : 2 * step + 2]}
        assert together == set(whole[8 + 8 * step : 16 + 8 * step])


def test_hold_out(digits: Path) -> None:
    data = load(*find_files(digits / "train"))
    train, val = hold_out(data, 10)
    assert [video.id for video in val.videos] == [10, 20]
    assert len(train.videos) == 22
    with pytest.raises(DataError, match="too few"):
        hold_out(data, 100)
