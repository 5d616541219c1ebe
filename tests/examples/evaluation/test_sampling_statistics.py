"""Where samples lie: with offsets set by hand every figure is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from defvis.config import Config
from defvis.data import rle
from defvis.data.clips import normalise
from defvis.data.dataset import Track, Video
from defvis.data.ytvis import find_files, load
from defvis.evaluation.sampling_points import deformable, watched
from defvis.evaluation.sampling_statistics import LayerStatistics, measure_sampling, to_tables
from defvis.models.model import DefVIS
from defvis.training.load_trained import load_trained
from stdeform import STDeformAttn
from stdeform.functional import st_deform_attn
from tests.examples.support import program

# Frames of 4 x 6 cells of 8 pixels.
HEIGHT, WIDTH = 32, 48
Places = Sequence[tuple[float, float] | None]


class Noise(Video):
    """Random pixels."""

    def frame(self, index: int) -> np.ndarray:
        random = np.random.default_rng(index)
        return random.integers(0, 256, (self.height, self.width, 3)).astype(np.uint8)


def _video(*objects: Places) -> Video:
    """Objects of 2 x 2 cells; a place is the cell (x, y) of the upper left corner."""
    tracks = [
        Track(number, 0, tuple(masks), (None,) * len(masks), is_crowd=False)
        for number, places in enumerate(objects)
        for masks in [[None if place is None else rle.encode(_mask(place)) for place in places]]
    ]
    length = len(objects[0]) if objects else 4
    return Noise(1, WIDTH, HEIGHT, (Path(),) * length, tuple(tracks))


def _mask(place: tuple[float, float]) -> np.ndarray:
    x, y = (round(8 * cell) for cell in place)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + 16, x : x + 16] = True
    return mask


def _set(layer: STDeformAttn, points: Sequence[tuple[float, float, float, float]]) -> None:
    """Gives a layer samples (x, y, t, weight) that do not depend on the query."""
    rest = [(0.0, 0.0, 0.0, 0.0)] * (sum(layer.num_points) - len(points))
    table = torch.tensor([*points, *rest])
    with torch.no_grad():
        layer.sampling_offsets.weight.zero_()
        layer.sampling_offsets.bias.copy_(table[:, :3].flatten().repeat(layer.num_heads))
        layer.attention_weights.weight.zero_()
        logits = table[:, 3].log().clamp(min=-1e4)
        layer.attention_weights.bias.copy_(logits.repeat(layer.num_heads))


def _trained(model: DefVIS, video: Video, config: Config) -> dict[str, LayerStatistics]:
    figures = measure_sampling(model, [video], config.data)
    return {one.layer: one for one in figures if one.points == "trained"}


def test_points_that_follow_an_object(config: Config) -> None:
    """One frame ahead, where the object will be: a cell further right."""
    model = DefVIS(config.model).eval()
    _set(model.encoder.layers[0].attention.deform, [(1, 0, 1, 1)])
    found = _trained(model, _video([(0, 1), (1, 1), (2, 1), (3, 1)]), config)["encoder 1"]
    assert (found.queries, found.of_objects) == (4 * 24, 4 * 4)
    # The last column and the last frame look outside.
    inside = 5 / 6 * 3 / 4
    assert found.means == pytest.approx([1, 0, 1, 0, inside, 1 - inside], abs=1e-5)
    # Had it stood still, only the left half of its cells would find it.
    for moved in (False, True):
        assert found.shares(moved) == pytest.approx([1, 0, 0, 0.5, 1], abs=1e-5)


def test_points_that_stay(config: Config) -> None:
    """Between frames, in the own one, and outside; an object comes where another one was.

    A quarter of a cell is no motion.
    """
    model = DefVIS(config.model).eval()
    points = [(0, 0, 0.25, 0.6), (0, 0, 0, 0.3), (0, -50, 0, 0.1)]
    _set(model.encoder.layers[0].attention.deform, points)
    one, other = [(0, 1), (2, 1), (2, 1), None], [None, (0, 1), (0, 1.25), (0, 1)]
    found = _trained(model, _video(one, other), config)["encoder 1"]
    assert found.of_objects == 6 * 4
    ahead = 0.6 * 0.25
    figures = [0, 5, ahead, 0.3 + 0.6 * 0.75, ahead * 3 / 4, 0.1 + ahead / 4]
    assert found.means == pytest.approx(figures, abs=1e-5)
    # Of four looks ahead at a frame in which the object is visible, one finds the other object.
    assert found.shares(moved=False) == pytest.approx([0.75, 0.25, 0, 1, 0], abs=1e-5)
    assert found.shares(moved=True) == pytest.approx([0, 1, 0, 1, 0], abs=1e-5)


def test_slots_that_show_an_object(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slot 1 starts in the middle, where the object is except in frame 2, and looks ahead."""
    model = DefVIS(dataclasses.replace(config.model, queries="slots")).eval()
    places = [(2, 1), (2, 1), (4, 1), (2, 1)]
    for layer in model.decoder.layers:
        _set(layer.cross_attention.deform, [(0, 0, 1, 1)])
    logits = torch.full((1, 3, 4, HEIGHT // 2, WIDTH // 2), -3.0)
    logits[0, 0] = 3.0  # The whole frame, of which the object is a sixth.
    for frame, place in enumerate(places):
        logits[0, 1, frame][torch.from_numpy(_mask(place)[::2, ::2])] = 3.0

    def predict(frames: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        model(frames)
        return None, None, logits

    monkeypatch.setattr(model, "predict", predict)
    layers = _trained(model, _video(places), config)
    for name in ("decoder 1", "decoder 2"):
        assert (layers[name].queries, layers[name].of_objects) == (12, 4)
        assert layers[name].means == pytest.approx([0, 0, 1, 0, 0.75, 0.25], abs=1e-5)
        shares = [2 / 3, 0, 1 / 3, 2 / 3, 0]
        assert layers[name].shares(moved=False) == pytest.approx(shares, abs=1e-5)
        assert layers[name].shares(moved=True) == pytest.approx([0.5, 0, 0.5, 0.5, 0], abs=1e-5)


def test_untrained_points_are_those_of_a_new_model(config: Config) -> None:
    videos = [_video([(0, 1), (1, 1), (2, 1), (3, 1)])]
    model = DefVIS(config.model).eval()
    fresh = measure_sampling(model, videos, config.data)
    for before, after in zip(fresh[::2], fresh[1::2], strict=True):
        assert after.points == "trained"
        torch.testing.assert_close(before.spread, after.spread)
        torch.testing.assert_close(before.objects, after.objects)
    _set(model.encoder.layers[0].attention.deform, [(1, 0, 1, 1)])
    before, after = measure_sampling(model, videos, config.data)[:2]
    assert before.points == "untrained"
    torch.testing.assert_close(before.spread, fresh[0].spread)
    assert not torch.allclose(after.spread, fresh[0].spread)


def test_weights_are_those_with_which_the_operator_reads(config: Config) -> None:
    """Of values that are 1 in one frame, the operator returns the weight in that frame."""
    model = DefVIS(config.model).eval()
    layer = deformable(model.encoder.layers[0].attention)
    torch.manual_seed(0)
    with torch.no_grad():
        layer.sampling_offsets.bias.normal_(std=2)
        layer.attention_weights.bias.normal_()
        with watched([layer]) as seen:
            model(normalise(np.stack([_video().frame(index) for index in range(4)]))[None])
        points = seen[layer]
        frames, weights = points.reads()
        value = torch.eye(4).repeat_interleave(24, 0)[None, :, None].expand(-1, -1, 2, -1)
        read = st_deform_attn(
            value.contiguous(), [points.shape],
            points.locations[None, :, :, None], points.weights[None, :, :, None],
        ).view(4 * 24, 2, 4)  # fmt: skip
    found = torch.stack([(weights * (frames == frame)).sum((2, 3)) for frame in range(4)], -1)
    torch.testing.assert_close(found, read)


def test_long_videos_are_cut_as_for_prediction(config: Config) -> None:
    found = _trained(DefVIS(config.model).eval(), _video([(0, 1)] * 6), config)
    assert (found["encoder 1"].queries, found["decoder 2"].queries) == (2 * 4 * 24, 2 * 4 * 3)


def test_no_objects_and_own_frame(config: Config) -> None:
    own = dataclasses.replace(config.model, encoder_attention="own-frame")
    found = measure_sampling(DefVIS(own).eval(), [_video()], config.data)
    for one in found[:2]:
        assert one.means[2] == one.means[4] == 0
        assert one.means[3] + one.means[5] == pytest.approx(1)
    assert all(math.isnan(share) for one in found for share in one.shares(moved=False))
    assert "| encoder 1 | trained | 0 | all | - | - | - | - | - |" in to_tables(found)


def test_other_kinds_of_attention(config: Config) -> None:
    model = dataclasses.replace(config.model, decoder_attention="dense")
    with pytest.raises(ValueError, match="'own-frame', got DenseAttention"):
        measure_sampling(DefVIS(model).eval(), [_video()], config.data)


def test_program(digits: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = program("evaluate_defvis")
    words = ["--data", str(digits / "val"), "--sampling"]
    evaluate([*words, "--run", str(tiny_run)])
    trained, data = load_trained(tiny_run), load(*find_files(digits / "val"))
    tables = to_tables(measure_sampling(trained.model, data.videos, trained.config.data))
    shown = capsys.readouterr().out
    assert f"{tables}\n6 videos, " in shown
    assert "| encoder 1 | trained | 1,152 |" in shown
    with pytest.raises(SystemExit):
        evaluate([*words, "--results", str(tiny_run / "results.json")])
    assert "--sampling needs --run" in capsys.readouterr().err
