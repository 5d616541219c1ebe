"""What the layers compute: arithmetic, broadcasting, padding, dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stdeform import functional
from tests.support.layers import (
    LAYERS,
    by_hand,
    inputs,
    trained,
    video_layer,
)

# -- what is computed --------------------------------------------------------------------------


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("axes", LAYERS)
def test_output(on_cpu: str, axes: str, boxes: bool) -> None:
    layer = trained(LAYERS[axes][0](backend=on_cpu)).double()
    query, points, value, shapes = inputs(axes, boxes=boxes)
    args = query.double(), points.double(), value.double(), shapes
    torch.testing.assert_close(layer(*args), by_hand(layer, *args), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", LAYERS)
def test_gradients_reach_everything(axes: str) -> None:
    layer = trained(LAYERS[axes][0]()).double()
    query, points, value, shapes = inputs(axes, boxes=True)
    leaves = [tensor.double().requires_grad_() for tensor in (query, points, value)]
    every = [*leaves, *layer.parameters()]
    got = torch.autograd.grad(layer(*leaves, shapes).square().sum(), every)
    want = torch.autograd.grad(by_hand(layer, *leaves, shapes).square().sum(), every)
    for one, other in zip(got, want, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("axes", LAYERS)
def test_reference_points_broadcast(axes: str, boxes: bool) -> None:
    """Over levels, over the batch, and over both."""
    layer = trained(LAYERS[axes][0]())
    query, points, value, shapes = inputs(axes, boxes=boxes)
    for given, meant in (
        (points[:, :, 0], points[:, :, :1]),
        (points[:, :, :1], points[:, :, :1]),
        (points[:1], points[:1]),
        (points[:1, :, 0], points[:1, :, :1]),
        (points[:1, :, :1], points[:1, :, :1]),
    ):
        expected = layer(query, meant.expand_as(points), value, shapes)
        assert torch.equal(layer(query, given, value, shapes), expected)


@pytest.mark.parametrize("axes", LAYERS)
def test_the_backend_is_passed_on(axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = functional.attend

    def watched(*args: Any) -> Tensor:
        asked.append(args[-1])
        return real(*args)

    monkeypatch.setattr(functional, "attend", watched)
    layer = LAYERS[axes][0](backend="reference")
    layer(*inputs(axes))
    layer.backend = "auto"
    layer(*inputs(axes))
    assert asked == ["reference", "auto"]


def test_empty_batch_and_no_queries() -> None:
    layer = video_layer()
    for batch, num_queries in ((0, 7), (2, 0)):
        query, points, value, shapes = inputs("video", batch=batch, num_queries=num_queries)
        assert layer(query, points, value, shapes).shape == (batch, num_queries, 32)


# -- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", LAYERS)
def test_padding_counts_as_zero_after_the_projection(axes: str) -> None:
    layer = trained(LAYERS[axes][0]()).double()
    query, points, value, shapes = inputs(axes)
    args = query.double(), points.double(), value.double(), shapes
    mask = torch.rand(value.shape[:2]) < 0.3
    extra = (None, mask) if axes == "image" else (mask,)
    out = layer(*args, *extra)
    torch.testing.assert_close(out, by_hand(layer, *args, mask), rtol=1e-10, atol=1e-10)
    # The bias of the projection would make it differ from zeros before it.
    zeroed = args[2].masked_fill(mask[..., None], 0.0)
    assert not torch.allclose(out, layer(args[0], args[1], zeroed, shapes))


def test_padding_does_not_leak_and_gets_no_gradient() -> None:
    layer = trained(video_layer())
    query, points, value, shapes = inputs("video")
    mask = torch.zeros(value.shape[:2], dtype=torch.bool)
    mask[1, 40:] = True
    expected = layer(query, points, value, shapes, mask)
    poisoned = value.masked_fill(mask[..., None], torch.nan).requires_grad_()
    out = layer(query, points, poisoned, shapes, mask)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert poisoned.grad is not None
    assert not poisoned.grad[mask].any()
    assert poisoned.grad[~mask].any()


# -- dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_autocast_keeps_coordinates_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, torch.dtype] = {}
    real = functional.attend

    def watched(value: Tensor, sizes: Any, points: Tensor, *rest: Any) -> Tensor:
        seen.update(value=value.dtype, points=points.dtype)
        return real(value, sizes, points, *rest)

    monkeypatch.setattr(functional, "attend", watched)
    layer = trained(video_layer())
    query, points, value, shapes = inputs("video")
    expected = layer(query, points, value, shapes)
    with torch.autocast("cpu", dtype):
        out = layer(query, points, value, shapes)
    assert seen == {"value": dtype, "points": torch.float32}
    assert out.dtype == dtype
    # Four roundings to a half on the way, and offsets of up to 3 cells in it.
    error = (out.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 8 * torch.finfo(dtype).eps
    out.sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axes", LAYERS)
def test_layers_in_other_dtypes(axes: str, dtype: torch.dtype) -> None:
    layer = LAYERS[axes][0]()
    query, points, value, shapes = inputs(axes)
    expected = layer(query, points, value, shapes)
    layer = layer.to(dtype)
    for side in (dtype, torch.float32):
        out = layer(query.to(dtype), points.to(side), value.to(dtype), shapes)
        assert out.dtype == dtype
        # The start pattern reads at whole cells from the reference point, which side rounds.
        coarse = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        error = (out.double() - expected.double()).square().mean().sqrt()
        assert error < 16 * coarse * expected.square().mean().sqrt()
