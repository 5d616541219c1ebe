"""The detector and its plain attention compute what ours do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stdeform
from benchmarks.subjects import plain_attention
from benchmarks.subjects.detector import Detector, make_detectors, make_images

_SMALL: Any = {"width": 64, "num_layers": 2, "num_queries": 5}


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("shapes", [[(5, 7), (3, 4)], [(2, 5, 7), (3, 2, 4)]])
def test_plain_attention_is_the_operator(shapes: list[tuple[int, ...]], boxes: bool) -> None:
    cells, axes = sum(map(stdeform.num_cells, shapes)), len(shapes[0])
    value = torch.randn(2, cells, 4, 8, dtype=torch.float64)
    references = torch.rand(2, 6, 2, axes * (1 + boxes), dtype=torch.float64)
    offsets = 2 * torch.randn(2, 6, 4, 2, 3, axes, dtype=torch.float64)
    logits = torch.randn(2, 6, 4, 2, 3, dtype=torch.float64)
    arguments = (value, shapes, references, offsets, logits)
    actual = plain_attention.attend_from_offsets(*arguments)
    expected = stdeform.st_deform_attn_from_offsets(*arguments, backend="reference")
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_detectors_differ_in_their_attention_alone() -> None:
    models = make_detectors(0, **_SMALL)
    images, padding = make_images(2, 64, 96, 0)
    answers = [model.double()(images.double(), padding) for model in models.values()]
    for actual, expected in zip(*answers, strict=True):
        assert actual.std() > 0.01
        # Reference points are made in float32 of both, so rounding is that of float64.
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


def test_padding_and_offsets_are_seen() -> None:
    model: Detector = make_detectors(0, **_SMALL)["stdeform"]
    images, padding = make_images(2, 64, 96, 0)
    assert not padding[0].any()
    assert padding[1].any(0).tolist() == [True] * 96
    right, _ = model(images, padding)
    unmasked, _ = model(images, torch.zeros_like(padding))
    changed = (right - unmasked).abs().amax((1, 2))
    assert changed[0] < 1e-5 < changed[1]
    for layer in (*model.encoder, *model.decoder):
        assert layer.attention.sampling_offsets.weight.std() > 0.1
