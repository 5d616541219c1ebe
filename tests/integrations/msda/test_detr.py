"""A Deformable-DETR-like client of the extension's API trains as on the grid_sample baseline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stdeform.integrations import msda
from stdeform.testing import composite
from tests.integrations.msda.detr_client import (
    CHANNELS,
    Attend,
    Detector,
    ExtensionFunction,
    loss,
)
from tests.support.integers_on_gpu import IntegersOnGpu

SHAPES = [(8, 10), (4, 5), (2, 3)]


@pytest.fixture
def enabled() -> Iterator[None]:
    msda.enable()
    yield
    msda.disable()


def in_pytorch(value: Tensor, shapes: Tensor, _: Tensor, *others: Any) -> Tensor:
    return composite(value, shapes.tolist(), *others[:2])


def train_a_step(
    make_attend: Callable[..., nn.Module], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Outputs, loss and all gradients of a seeded model; its levels differ in their padding."""
    torch.manual_seed(3)
    features = [torch.randn(2, CHANNELS, *shape, dtype=torch.float64) for shape in SHAPES]
    masks = [torch.zeros(2, *shape, dtype=torch.bool) for shape in SHAPES]
    for mask, (height, width) in zip(masks, SHAPES, strict=True):
        mask[1, height - height // 4 :] = True
        mask[1, :, width - width // 3 :] = True
    model = Detector(functools.partial(Attend, attention=in_pytorch), len(SHAPES)).double()
    state = model.state_dict()
    model = Detector(make_attend, len(SHAPES)).to(dtype)
    model.load_state_dict(state, strict=True)
    outputs = model([feature.to(dtype) for feature in features], masks)
    total = loss(outputs)
    total.backward()
    grads = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        grads[name] = parameter.grad
    return outputs, total, grads


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "the extension": functools.partial(Attend, attention=ExtensionFunction.apply),
    "our Function": functools.partial(Attend, attention=msda.MSDeformAttnFunction.apply),
    "our layer": msda.MSDeformAttn,
}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.usefixtures("enabled", "needs_native")
def test_a_training_step_equals_that_of_the_baseline(
    layer: str, dtype: torch.dtype, bound: float, shapes_on_gpu: IntegersOnGpu
) -> None:
    outputs, total, grads = train_a_step(LAYERS[layer], dtype)
    assert len(shapes_on_gpu.reads) == 1  # 12 layers, forward and backward
    expected = train_a_step(functools.partial(Attend, attention=in_pytorch), dtype)
    # Rounding of 12 layers, in float64 and in float32.
    close = functools.partial(torch.testing.assert_close, rtol=bound, atol=bound)
    close(outputs, expected[0])
    close(total, expected[1])
    close(grads, expected[2])
