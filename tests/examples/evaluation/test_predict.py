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
from defvis.evaluation.tracks import MAX_WHOLE_LENGTH, SlotTrack, TrackBuilder, to_results
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
    assert list(first.masks) == [0]
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
        assert list(track.masks) == list(range(9))
        for frame, mask in track.masks.items():
            rows, columns = np.nonzero(rle.decode(mask))
            assert (rows.min(), columns.min()) == (row, frame)

    builder = _builder(9)
    builder.add(0, *_clip(0, 6, [0, None], [0, 1]))
    builder.add(3, *_clip(3, 6, [16, 0], [1, 0]))
    tracks = {track.label: track for track in builder.tracks()}
    assert len(tracks) == 2
    assert list(tracks[0].masks) == list(range(9))
    assert list(tracks[1].masks) == list(range(3, 9))
    assert tracks[0].identity != tracks[1].identity


def test_linked_clips_are_averaged() -> None:
    """In the shared frames a strong vote against pixels wins over a weak one for them."""
    builder = _builder(4)
    classes, masks = _clip(0, 3, [0], [0])
    masks[:, :, 10:12, 10:12] = 1.0
    builder.add(0, classes, masks)
    builder.add(1, *_clip(1, 3, [0], [0]))
    (track,) = builder.tracks()
    decoded = [rle.decode(mask) for mask in track.masks.values()]
    assert [bool(mask[10, 10]) for mask in decoded] == [True, False, False, False]


def test_objects_that_do_not_overlap_are_not_linked() -> None:
    builder = _builder(4)
    builder.add(0, *_clip(0, 3, [0], [0]))
    builder.add(1, *_clip(1, 3, [16], [0]))
    assert [list(track.masks) for track in builder.tracks()] == [[0, 1, 2], [1, 2, 3]]


def test_clips_of_one_frame_are_linked_to_the_frame_before() -> None:
    """Two objects exchange slots; one is not seen in frame 2 and so is another one from then on."""
    builder = _builder(5)
    for frame, places in enumerate([(0, 12), (12, 0), (0, None), (0, 12), (12, 0)]):
        builder.add(frame, *_clip(frame, 1, places, [0, 1]))
    assert [list(track.masks) for track in builder.tracks()] == [[0, 1, 2, 3, 4], [0, 1], [3, 4]]
    assert len({track.identity for track in builder.tracks()}) == 3


def test_clips_with_a_gap_between_them_are_not_linked() -> None:
    builder = _builder(4)
    builder.add(0, *_clip(0, 1, [0], [0]))
    builder.add(2, *_clip(2, 2, [0], [0]))
    assert [list(track.masks) for track in builder.tracks()] == [[0], [2, 3]]


def _passing(length: int) -> list[SlotTrack]:
    """Ten slots show something for a clip of six frames each, never the same."""
    builder, random = _builder(length), np.random.default_rng(0)
    for start in clip_starts(length, 6):
        masks = torch.full((10, 6, 6, 6), -3.0)
        for slot in range(10):
            masks[slot, :, random.integers(6), random.integers(6)] = 3.0
        builder.add(start, torch.full((10, 6, 1), 0.5), masks)
    return builder.tracks()


def test_tracks_and_results_grow_with_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the square of the length, in a video in which nothing stays."""
    assert MAX_WHOLE_LENGTH == 300
    monkeypatch.setattr("defvis.evaluation.tracks.MAX_WHOLE_LENGTH", 24)
    short, long = _passing(24), _passing(48)
    assert sum(len(track.masks) for track in long) < 2.2 * sum(len(t.masks) for t in short)
    for tracks, whole in ((short, True), (long, False)):
        entries = to_results(tracks, 1, (7,))
        assert len(entries) == len(tracks)
        for track, entry in zip(tracks, entries, strict=True):
            first = entry.get("first_frame", 0)
            assert ("first_frame" in entry) is not whole
            masks = entry["segmentations"]
            seen = [frame for frame, mask in enumerate(masks, first) if mask is not None]
            assert seen == list(track.masks)
            assert len(masks) == (24 if whole else seen[-1] - seen[0] + 1)
            counts = track.masks[seen[-1]]["counts"].decode()
            assert masks[seen[-1] - first] == {"size": [SIZE, SIZE], "counts": counts}


def test_masks_are_fitted_to_the_video() -> None:
    """Logits at half the network's frame, the video itself twice as large and not square."""
    logits = torch.full((1, 1, 12, 6), -1.0)
    logits[..., :6, :3] = 1.0
    builder = TrackBuilder(Noise(1, height=48, width=24), (24, 12))
    builder.add(0, torch.zeros(1, 1, 3), logits)
    (track,) = builder.tracks()
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
    assert all(track.length == length for track in tracks)
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
            for frame in {*a.masks, *b.masks}:
                pixels = [rle.decode(m[frame]) if frame in m else 0 for m in (a.masks, b.masks)]
                assert np.mean(pixels[0] != pixels[1]) < 0.02
