"""Objects of another clip laid over a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from defvis.config import DataConfig
from defvis.data.clips import ClipDataset, FrameCache, as_pictures
from defvis.data.paste import Layers, paste
from defvis.data.ytvis import find_files, load


def clip(size: tuple[int, int, int], colour: int, label: int, *box: int) -> Layers:
    """A clip [T, H, W] of one colour with a brighter rectangle top, left, bottom, right."""
    pixels = np.full((*size, 3), colour, dtype=np.uint8)
    mask = np.zeros((1, *size), dtype=bool)
    top, left, bottom, right = box
    mask[:, :, top:bottom, left:right] = True
    pixels[mask[0]] = colour + 50
    return Layers(pixels, np.array([label]), mask)


def test_object_comes_to_its_place_and_hides_what_is_below() -> None:
    below, other = clip((2, 10, 20), 0, 3, 2, 4, 8, 12), clip((3, 12, 14), 100, 5, 0, 0, 4, 4)
    pasted = paste(below, other, [(0.5, 0.5)])
    assert pasted.labels.tolist() == [3, 5]
    new = np.zeros((2, 10, 20), dtype=bool)
    new[:, 4:8, 8:12] = True  # its middle, 1.5, comes to 5 and 10 as whole pixels go
    assert np.array_equal(pasted.masks[1], new)
    assert np.array_equal(pasted.masks[0], below.masks[0] & ~new)
    assert (pasted.pixels[new] == 150).all()
    assert np.array_equal(pasted.pixels[~new], below.pixels[~new])
    assert below.masks[0, 0, 4, 8], "the clip itself stays as it is"


def test_what_leaves_the_frame_or_is_absent() -> None:
    below, other = clip((3, 10, 20), 0, 3, 2, 4, 8, 12), clip((2, 10, 20), 100, 5, 4, 4, 8, 8)
    corner = paste(below, other, [(0.0, 1.0)]).masks[1]
    assert corner[:2, :2, 18:].all()
    assert corner.sum() == 2 * 2 * 2, "a quarter, in the frames that the other clip has"
    empty = replace(other, masks=np.zeros_like(other.masks))
    same = paste(below, empty, [(0.5, 0.5)])
    assert same.labels.tolist() == [3]
    assert np.array_equal(same.pixels, below.pixels)
    nothing = replace(below, labels=below.labels[:0], masks=below.masks[:0])
    assert paste(nothing, empty, [(0.5, 0.5)]).masks.shape == (0, 3, 10, 20)


@pytest.mark.parametrize("frames", [1, 4])
def test_clips_of_a_dataset(digits: Path, frames: int) -> None:
    """Each clip has objects of others, never of a crowd; without pasting clips stay as they are."""
    data = load(*find_files(digits / "train"))
    crowd = tuple(
        replace(video, tracks=tuple(replace(track, is_crowd=True) for track in video.tracks))
        for video in data.videos[1:]
    )
    still = DataConfig(reverse=0.0, permute_channels=0.0, recolour=0.0)
    plain, pasted, lonely = (
        ClipDataset(videos, frames, replace(still, paste=share), 0, FrameCache(10))
        for videos, share in (
            (data, 0.0), (data, 1.0), (replace(data, videos=(data.videos[0], *crowd)), 1.0)
        )
    )  # fmt: skip
    more = changed = 0
    for index in range(len(data.videos)):
        before, after = plain[0, index], pasted[0, index]
        more += len(after.targets.labels) - len(before.targets.labels)
        moved = as_pictures(before.frames) != as_pictures(after.frames)
        inside = after.targets.masks.any(0).numpy()
        changed += moved.any()
        assert not moved[~inside].any(), "pixels change under masks only"
        assert pasted[0, index].frames.equal(after.frames)
    assert more > 0
    assert changed > len(data.videos) / 2
    assert all(
        len(lonely[0, index].targets.labels) <= len(data.videos[0].tracks)
        for index in range(1, len(data.videos))
    )
