"""The samples that Figure 1 shows are those the operator reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from defvis.config import Config
from defvis.data.clips import normalise
from defvis.evaluation.sampling_figure import (
    SamplingPoints,
    decoder_points,
    draw_points,
    encoder_points,
)
from defvis.models.model import DefVIS
from stdeform import STDeformAttn
from stdeform.functional import st_deform_attn

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3)).astype(np.uint8)


def _model(config: Config) -> DefVIS:
    """A model with offsets and weights that depend on the query."""
    model = DefVIS(config.model).eval()
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, STDeformAttn)):
            layer.sampling_offsets.weight.normal_(std=0.3)
            layer.attention_weights.weight.normal_(std=0.5)
    return model


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_points_give_the_layers_own_output(config: Config, kind: str) -> None:
    model = _model(config)
    if kind == "decoder":
        points, query = decoder_points(model, PIXELS, slot=2, frame=1), 2 * 3 + 1
        layer = model.decoder.layers[-1].cross_attention.deform
    else:
        points, query = encoder_points(model, PIXELS, x=20, y=9, frame=2), (2 * 4 + 1) * 6 + 2
        layer = model.encoder.layers[-1].attention.deform
    seen = {}

    def keep(module: STDeformAttn, arguments: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.update(value=arguments[2], shapes=arguments[3], out=out)

    handle = layer.register_forward_hook(keep)
    with torch.no_grad():
        model(normalise(PIXELS)[None])
        handle.remove()
        value = layer.value_proj(seen["value"]).unflatten(-1, (layer.num_heads, -1))
        attended = st_deform_attn(
            value, seen["shapes"], points.locations[None, None, :, None],
            points.weights[None, None, :, None],
        )  # fmt: skip
        found = layer.output_proj(attended)[0, 0]
    torch.testing.assert_close(found, seen["out"][0, query], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(points.weights.sum(-1), torch.ones(layer.num_heads))


def test_weight_is_shared_between_neighbouring_frames() -> None:
    """A sample at frame 1.25 reads frame 1 with 3/4 and frame 2 with 1/4 of its weight."""
    points = SamplingPoints(
        torch.tensor([0.5, 0.5, 0.5]),
        torch.tensor([[[0.2, 0.2, 1.75 / 4], [0.9, 0.9, -0.5]]]),
        torch.tensor([[0.6, 0.4]]),
    )
    shares = torch.stack([points.in_frame(frame, 4) for frame in range(4)])
    torch.testing.assert_close(shares[:, 0, 0], torch.tensor([0.0, 0.45, 0.15, 0.0]))
    assert not shares[:, 0, 1].any(), "a sample before the first frame reads nothing"


def test_picture(tmp_path: Path) -> None:
    """The sample is where it is drawn, in the frames it reads, in its head's colour."""
    pixels = np.zeros((4, 32, 48, 3), dtype=np.uint8)
    points = SamplingPoints(
        torch.tensor([0.75, 0.75, 2.5 / 4]),
        torch.tensor([[[0.25, 0.25, 1.5 / 4]]]),
        torch.tensor([[1.0]]),
    )
    draw_points(pixels, points, tmp_path / "points.png", columns=4)
    with Image.open(tmp_path / "points.png") as sheet:
        drawn = np.asarray(sheet)
    scale = 6
    for frame in range(4):
        left = frame * (48 * scale + 2)
        part = drawn[:, left : left + 48 * scale]
        assert part[8 * scale, 12 * scale].any() == (frame == 1)
        assert (part[24 * scale, 36 * scale] == 255).all() == (frame == 2)


def test_dense_attention_has_no_points(config: Config) -> None:
    model = dataclasses.replace(config.model, encoder_attention="dense")
    with pytest.raises(ValueError, match="'own-frame', got DenseAttention"):
        encoder_points(DefVIS(model).eval(), PIXELS, 0, 0, 0)


def test_points_are_of_one_level(config: Config) -> None:
    model = dataclasses.replace(config.model, levels=2)
    with pytest.raises(ValueError, match="are of one level, got 2 levels"):
        encoder_points(DefVIS(model).eval(), PIXELS, 0, 0, 0)
