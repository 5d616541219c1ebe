"""Clips: what is drawn, cut, resized, recoloured and padded, and in which order."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from defvis.config import DataConfig
from defvis.config_io import override
from defvis.data import rle
from defvis.data.augment import draw_augmentation
from defvis.data.clips import ClipDataset, FrameCache, collate, object_masks
from defvis.data.resize_crop import ResizeCrop, Size, draw_resize_crop, network_size
from defvis.data.sampling import EndlessSampler
from defvis.data.ytvis import find_files, load
from tests.examples.data.small_dataset import CONTENT, write_dataset

# Clips as they are: no change of order or colour.
STILL = DataConfig(paste=0.0, reverse=0.0, permute_channels=0.0, brightness=0.0)


def test_clips_leave_out_crowds_and_absent_objects(tmp_path: Path) -> None:
    data = load(*write_dataset(tmp_path, CONTENT))
    clip = ClipDataset(data, 3, STILL, 0, FrameCache(1))[0, 0]
    assert clip.targets.labels.tolist() == [1]
    assert clip.targets.valid.tolist() == [[True, False, True]]
    np.testing.assert_allclose(clip.targets.boxes[0, 0], [1 / 16, 0.5, 1 / 8, 1.0])
    assert not clip.targets.boxes[0, 1].any()
    assert clip.frames.shape == (3, 3, 6, 8)
    seen = {
        tuple(ClipDataset(data, 1, STILL, 0, FrameCache(0))[epoch, 0].targets.valid.shape)
        for epoch in range(12)
    }
    assert seen == {(1, 1), (0, 1)}, "single frames with and without the object"


@pytest.mark.parametrize("size", [(6, 8), (9, 5)])
def test_masks_are_those_of_every_frame_decoded_alone(tmp_path: Path, size: Size) -> None:
    video = load(*write_dataset(tmp_path, CONTENT)).videos[0]
    assert len(video.tracks) > len(video.objects) > 0
    whole = ResizeCrop(0, 0, (video.height, video.width), size)
    for tracks in (video.tracks, video.objects, []):
        masks = object_masks(tracks, range(1, 3), whole)
        assert masks.shape == (len(tracks), 2, *size)
        for row, track in enumerate(tracks):
            for column in range(2):
                run_lengths = track.masks[1 + column]
                expected = False if run_lengths is None else whole.mask(rle.decode(run_lengths))
                assert (masks[row, column] == expected).all()


def test_one_frame_is_played_backwards(tmp_path: Path) -> None:
    """Its reversed view is contiguous with a negative stride, which PyTorch does not take."""
    data = load(*write_dataset(tmp_path, CONTENT))
    plain, changed = (
        ClipDataset(data, 1, replace(STILL, reverse=share), 0, FrameCache(1))[0, 0]
        for share in (0.0, 1.0)
    )
    assert changed.frames.equal(plain.frames)
    assert changed.targets.masks.equal(plain.targets.masks)


def test_resizing_and_padding(tmp_path: Path) -> None:
    data = load(*write_dataset(tmp_path, CONTENT))
    still = replace(STILL, short_side=12)
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


def test_frames_come_to_the_scale_of_training() -> None:
    seen = DataConfig(seen_short_sides=(96, 120))
    for side, scaled in ((480, 120), (121, 120), (120, 120), (100, 100), (48, 96)):
        assert network_size(side, 2 * side, seen) == (scaled, 2 * scaled)
    assert network_size(480, 960, replace(seen, long_side=200)) == (100, 200)
    assert network_size(480, 960, replace(seen, short_side=300)) == (300, 600)


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
    files = write_dataset(tmp_path, content)
    for index in range(3):
        Image.fromarray(pixels * (index != 1)).save(tmp_path / f"JPEGImages/a/{index}.jpg",
                                                    quality=98)  # fmt: skip
    config = DataConfig(paste=0.0, short_sides=(24, 36, 48), crop=1.0, crop_share=(0.4, 0.9),
                        flip=0.5, reverse=0.0, permute_channels=0.0, brightness=0.0)  # fmt: skip
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
    config = override(STILL, f"{field}={120.0 if field == 'hue' else 0.9}")
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    frame[0, 0], frame[0, 1] = 255, 0
    clip = np.stack([frame] * 4)
    masks = np.ones((1, 4, 8, 8), dtype=bool)
    outcomes = []
    for _ in range(20):
        changed, same = draw_augmentation(config, random).apply(clip, masks)
        assert (changed == changed[0]).all(), "every frame changes alike"
        assert changed[0, 0, 0].min() >= changed[0, 0, 1].max(), "white stays lighter than black"
        np.testing.assert_array_equal(same, masks)
        outcomes.append(changed)
    assert max(np.abs(o.astype(int) - clip.astype(int)).max() for o in outcomes) > 40
    if field in ("saturation", "hue"):
        grey = np.full((1, 4, 4, 3), 100, dtype=np.uint8)
        changed, _ = draw_augmentation(config, random).apply(grey, masks)
        assert np.abs(changed.astype(int) - 100).max() <= 1, "greys stay"


def test_each_change_of_colour_has_its_probability() -> None:
    """Brightness moves greys, saturation only what is coloured: both, one or none can be seen."""
    config = DataConfig(reverse=0, permute_channels=0, recolour=0.3, brightness=0.5, saturation=0.9)
    random = np.random.default_rng(0)
    clip = np.array([[[[100, 100, 100], [140, 100, 60]]]], dtype=np.uint8)
    masks = np.zeros((0, 1, 1, 2), dtype=bool)
    counts = dict.fromkeys(itertools.product((False, True), repeat=2), 0)
    for _ in range(1000):
        changed, _ = draw_augmentation(config, random).apply(clip, masks)
        grey, coloured = changed[0, 0].astype(int)
        spread = (coloured[0] - coloured[2]) / (80 * grey[0] / 100)
        counts[bool(abs(grey[0] - 100) > 1), bool(abs(spread - 1) > 0.04)] += 1
    for (lit, faded), count in counts.items():
        wanted = (0.3 if lit else 0.7) * (0.3 if faded else 0.7)
        assert count / 1000 == pytest.approx(wanted, abs=0.05), (lit, faded)


def test_clips_never_jump_in_time(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"] = []
    files = write_dataset(tmp_path, content)
    for index in range(3):
        Image.new("RGB", (8, 6), (60 * index,) * 3).save(tmp_path / f"JPEGImages/a/{index}.jpg")
    for length, wanted in ((2, {(0, 1), (1, 2)}), (3, {(0, 1, 2)}), (9, {(0, 1, 2)})):
        dataset = ClipDataset(load(*files), length, STILL, 0, FrameCache(1))
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
    other_seed = ClipDataset(data, 3, DataConfig(), 1, FrameCache(100))
    assert not cached[0, 0].frames.equal(other_seed[0, 0].frames)


def test_sampler_goes_on_where_it_stopped() -> None:
    whole = list(EndlessSampler(7, 3, 0, 40))
    assert whole[23:] == list(EndlessSampler(7, 3, 23, 17))
    for epoch in range(5):
        assert sorted(i for e, i in whole if e == epoch) == list(range(7))
    assert [i for _, i in whole[:7]] != [i for _, i in whole[7:14]]
    assert whole != list(EndlessSampler(7, 4, 0, 40))
    parts = [list(EndlessSampler(7, 3, 8, 32, rank, 4)) for rank in range(4)]
    assert sorted(whole[8:]) == sorted(key for part in parts for key in part)
    for step in range(4):  # of two clips in each of four processes
        together = {key for part in parts for key in part[2 * step : 2 * step + 2]}
        assert together == set(whole[8 + 8 * step : 16 + 8 * step])
