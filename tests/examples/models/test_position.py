"""Position encoding against its definition, value by value, and boxes against hand-made ones."""

from __future__ import annotations

import math

import pytest
import torch

from defvis.data.boxes import boxes_of_masks, generalised_iou
from defvis.models.layers import inverse_sigmoid
from defvis.models.position_encoding import sine_embedding, sine_position_3d


def test_sine_position_is_the_definition() -> None:
    frames, height, width, channels = 3, 4, 5, 24
    padding = torch.zeros(2, frames, height, width, dtype=torch.bool)
    padding[1, 2:] = True
    padding[1, :, 3:] = True
    padding[1, :, :, 2:] = True
    encoded = sine_position_3d(padding, channels)
    assert encoded.shape == (2, channels, frames, height, width)
    each = channels // 3
    for row, (last_t, last_y, last_x) in enumerate([(3, 4, 5), (2, 3, 2)]):
        for t, y, x in [(0, 0, 0), (1, 2, 1), (last_t - 1, last_y - 1, last_x - 1)]:
            expected = []
            for place, last in ((t, last_t), (y, last_y), (x, last_x)):  # t first
                angle = (place + 1) / (last + 1e-6) * 2 * math.pi
                for i in range(each):
                    scaled = angle / 10000 ** (2 * (i // 2) / each)
                    expected.append(math.cos(scaled) if i % 2 else math.sin(scaled))
            torch.testing.assert_close(
                encoded[row, :, t, y, x], torch.tensor(expected), atol=2e-5, rtol=0
            )


def test_channels_that_are_not_three_thirds() -> None:
    """C = 256, of Deformable DETR: y and x have 84 channels each, t the other 88."""
    mask = torch.zeros(1, 4, 3, 5, dtype=torch.bool)
    encoded = sine_position_3d(mask, 256)
    y, x = (torch.arange(1, size + 1) / (size + 1e-6) for size in (3, 5))
    torch.testing.assert_close(encoded[0, 88:172, 2, :, 1].T, sine_embedding(y, 84))
    torch.testing.assert_close(encoded[0, 172:, 2, 1].T, sine_embedding(x, 84))
    assert encoded[0, :88, :, 1, 1].T.equal(encoded[0, :88, :, 2, 4].T)


@pytest.mark.parametrize("channels", [33, 4])
def test_channels_must_fit(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"even and at least 6.*got {channels}"):
        sine_position_3d(torch.zeros(1, 1, 1, 1, dtype=torch.bool), channels)


def test_boxes_of_masks() -> None:
    masks = torch.zeros(2, 2, 10, 20, dtype=torch.bool)
    masks[0, 0, 2:5, 4:10] = True
    masks[0, 1, 0, 0] = masks[0, 1, 9, 19] = True
    boxes = boxes_of_masks(masks)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.35, 0.35, 0.3, 0.3]))
    torch.testing.assert_close(boxes[0, 1], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert not boxes[1].any()
    assert boxes_of_masks(masks[:0]).shape == (0, 2, 4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], 1.0),
        # Two squares of side .2, .4 apart: hull .6 x .2, union .08.
        ([0.3, 0.5, 0.2, 0.2], [0.7, 0.5, 0.2, 0.2], -(0.12 - 0.08) / 0.12),
        # Half overlap: intersection .02, union .06, hull .06.
        ([0.3, 0.5, 0.2, 0.2], [0.4, 0.5, 0.2, 0.2], 1 / 3),
        ([0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4], 0.25),
        ([0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.4, 0.4], 0.0),
    ],
)
def test_generalised_iou(a: list[float], b: list[float], expected: float) -> None:
    value = generalised_iou(torch.tensor(a), torch.tensor(b))
    torch.testing.assert_close(value, torch.tensor(expected), atol=1e-4, rtol=0)


def test_degenerate_boxes_have_finite_gradients() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, -0.1, 0.3]], requires_grad=True)
    generalised_iou(boxes, torch.zeros(2, 4)).sum().backward()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def test_inverse_sigmoid() -> None:
    x = torch.tensor([0.1, 0.5, 0.99])
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor([0.0, 1.0])).isfinite().all()
