"""From network outputs to tracks: scores, presence, overlapping clips linked to one identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from defvis.config import Config, DataConfig
from defvis.data import rle
from defvis.data.clips import FrameCache
from defvis.evaluation.predict import clip_starts, predict_videos
from defvis.evaluation.tracks import SlotTrack, TrackBuilder, to_results
from defvis.models.model import DefVIS

SIZE = 24


@dataclass(frozen=True)
class Noise:
    """Frames of random pixels; remembers how many were requested."""

    length: int
    id: int = 1
    height: int = SIZE
    width: int = SIZE

    def frame(self, index: int) -> np.ndarray:
        random = np.random.default_rng((self.id, index))
        return random.integers(0, 256, (self.height, self.width, 3)).astype(np.uint8)


def _builder(length: int) -> TrackBuilder:
    return TrackBuilder(Noise(length), (SIZE, SIZE))


def _clip(
    start: int, length: int, places: Sequence[int | None], classes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and mask logits of slots that show squares moving one pixel per frame."""
    probabilities = torch.zeros(len(places), length, 3)
    masks = torch.full((len(places), length, SIZE, SIZE), -3.0)
    for slot, (row, label) in enumerate(zip(places, classes, strict=True)):
        if row is None:
            continue
        probabilities[slot, :, label] = 0.9
        for frame in range(length):
            masks[slot, frame, row : row + 6, start + frame : start + frame + 6] = 3.0
    return probabilities, masks


def test_scores_and_presence() -> None:
    classes = torch.zeros(3, 2, 4)
    classes[0, 0, 2] = 1.0  # class 2, but only where the mask is present
    classes[1, :, 1] = 1.0
    masks = torch.full((3, 2, SIZE, SIZE), -1.0)
    masks[0, 0, 1, 1] = masks[1, :, 2, 2] = 1.0
    builder = _builder(2)
    builder.add(0, classes, masks)
    first, second = builder.tracks()
    assert (first.identity, first.label) == (0, 2)
    assert first.score == pytest.approx(torch.tensor(1.0).sigmoid())
    assert [mask is None for mask in first.masks] == [False, True]
    assert (second.identity, second.label) == (1, 1)


def test_a_score_is_the_mean_class_times_the_mean_pixel_of_the_mask() -> None:
    classes = torch.tensor([[[0.8], [0.4], [0.0]]])
    masks = torch.full((1, 3, SIZE, SIZE), -9.0)
    masks[0, 0, 3, 3] = math.log(3)  # probability 0.75
    masks[0, 1, 3, 3:6] = math.log(9)  # 0.9
    builder = _builder(3)
    builder.add(0, classes, masks)
    (track,) = builder.tracks()
    assert track.score == pytest.approx((0.8 + 0.4) / 2 * (0.75 + 3 * 0.9) / 4)


def test_clips_are_linked_whatever_their_slots() -> None:
    """Two objects that exchange slots in the second clip, and a third that comes late."""
    builder = _builder(9)
    builder.add(0, *_clip(0, 6, [0, 12, None], [0, 1, 0]))
    builder.add(3, *_clip(3, 6, [12, None, 0], [1, 0, 0]))
    first, second = builder.tracks()
    assert (first.label, second.label) == (0, 1)
    for track, row in ((first, 0), (second, 12)):
        for frame, mask in enumerate(track.masks):
            assert mask is not None
            rows, columns = np.nonzero(rle.decode(mask))
            assert (rows.min(), columns.min()) == (row, frame)

    builder = _builder(9)
    builder.add(0, *_clip(0, 6, [0, None], [0, 1]))
    builder.add(3, *_clip(3, 6, [16, 0], [1, 0]))
    tracks = {track.label: track for track in builder.tracks()}
    assert len(tracks) == 2
    assert all(mask is not None for mask in tracks[0].masks)
    assert [mask is None for mask in tracks[1].masks] == [True] * 3 + [False] * 6
    assert tracks[0].identity != tracks[1].identity


def test_linked_clips_are_averaged() -> None:
    """In the shared frames a strong vote against pixels wins over a weak one for them."""
    builder = _builder(4)
    classes, masks = _clip(0, 3, [0], [0])
    masks[:, :, 10:12, 10:12] = 1.0
    builder.add(0, classes, masks)
    builder.add(1, *_clip(1, 3, [0], [0]))
    (track,) = builder.tracks()
    decoded = [rle.decode(mask) for mask in track.masks if mask is not None]
    assert [bool(mask[10, 10]) for mask in decoded] == [True, False, False, False]


def test_objects_that_do_not_overlap_are_not_linked() -> None:
    builder = _builder(4)
    builder.add(0, *_clip(0, 3, [0], [0]))
    builder.add(1, *_clip(1, 3, [16], [0]))
    assert [[mask is None for mask in track.masks] for track in builder.tracks()] == [
        [False, False, False, True], [True, False, False, False],
    ]  # fmt: skip


def test_masks_are_fitted_to_the_video() -> None:
    """Logits at half the network's frame, the video itself twice as large and not square."""
    logits = torch.full((1, 1, 12, 6), -1.0)
    logits[..., :6, :3] = 1.0
    builder = TrackBuilder(Noise(1, height=48, width=24), (24, 12))
    builder.add(0, torch.zeros(1, 1, 3), logits)
    (track,) = builder.tracks()
    assert track.masks[0] is not None
    mask = rle.decode(track.masks[0])
    assert mask.shape == (48, 24)
    wanted = np.zeros((48, 24), dtype=bool)
    wanted[:24, :12] = True
    assert (mask != wanted).sum() <= 4  # interpolation rounds the corner
    assert not mask[24:].any()


@pytest.mark.parametrize(("length", "window"), [(7, 6), (500, 36), (12, 6), (5, 1), (9, 2)])
def test_clips_cover_the_video(length: int, window: int) -> None:
    starts = clip_starts(length, window)
    seen = {frame for start in starts for frame in range(start, start + window)}
    assert seen == set(range(length))
    assert starts == sorted(set(starts))
    if window > 1:
        assert max(np.diff(starts)) <= window - window // 2


def _predict(model: DefVIS, videos: Sequence[Noise], **options: int) -> list[list[SlotTrack]]:
    config = DataConfig(short_side=0)
    return list(predict_videos(model, videos, config, FrameCache(0), **options))


@pytest.mark.parametrize("length", [1, 4, 5, 30])
def test_any_length(config: Config, length: int) -> None:
    (tracks,) = _predict(DefVIS(config.model).eval(), [Noise(length)])
    assert tracks
    assert all(len(track.masks) == length for track in tracks)
    assert all(0 < track.score < 1 for track in tracks)
    identities = [track.identity for track in tracks]
    assert len(set(identities)) == len(identities)
    for result in to_results(tracks, 7, (5, 6, 9)):
        assert result["video_id"] == 7
        assert result["category_id"] in (5, 6, 9)
        assert len(result["segmentations"]) == length


def test_batches_change_nothing(config: Config) -> None:
    """Videos of several lengths and sizes, odd ones too, one by one and padded together."""
    model = DefVIS(config.model).eval()
    videos = [Noise(4, 1), Noise(9, 2), Noise(3, 3, 31, 17), Noise(2, 4, 24, 23)]
    alone = [tracks for video in videos for tracks in _predict(model, [video], batch_size=1)]
    together = _predict(model, videos, batch_size=3)
    for one, many in zip(alone, together, strict=True):
        assert [track.identity for track in one] == [track.identity for track in many]
        for a, b in zip(one, many, strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
            for left, right in zip(a.masks, b.masks, strict=True):
                pixels = [np.zeros(1) if m is None else rle.decode(m) for m in (left, right)]
                assert (pixels[0] != pixels[1]).mean() < 0.02
