"""The layers as modules: Deformable DETR's state dicts, copies, meta device, training."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from stdeform import MSDeformAttn, STDeformAttn, reference_grid
from tests.support.layers import (
    LAYERS,
    Layer,
    by_hand,
    image_layer,
    inputs,
    trained,
    video_layer,
)

# -- Deformable DETR ---------------------------------------------------------------------------

# Names and shapes of one attention layer in a released Deformable-DETR checkpoint (R50, encoder).
DEFORMABLE_DETR = {
    "sampling_offsets.weight": (256, 256),
    "sampling_offsets.bias": (256,),
    "attention_weights.weight": (128, 256),
    "attention_weights.bias": (128,),
    "value_proj.weight": (256, 256),
    "value_proj.bias": (256,),
    "output_proj.weight": (256, 256),
    "output_proj.bias": (256,),
}


def test_a_deformable_detr_state_dict_loads_unchanged() -> None:
    state = {name: torch.randn(shape) * 0.1 for name, shape in DEFORMABLE_DETR.items()}
    layer = MSDeformAttn()
    layer.load_state_dict(state, strict=True)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, state[name])
    shapes = [(8, 8), (4, 4), (2, 2), (1, 1)]
    value = torch.randn(2, 85, 256)
    grid = reference_grid(shapes).expand(2, -1, -1, -1)
    out = layer(value, grid, value, torch.tensor(shapes), torch.tensor([0, 64, 80, 84]))
    torch.testing.assert_close(
        out, by_hand(layer, value, grid, value, shapes), rtol=1e-4, atol=1e-4
    )


def test_shapes_as_rows_or_as_a_tensor() -> None:
    layer = trained(image_layer())
    query, points, value, shapes = inputs("image")
    expected = layer(query, points, value, shapes)
    for rows in (torch.tensor(shapes), torch.tensor(shapes, dtype=torch.int32)):
        assert torch.equal(layer(query, points, value, rows), expected)
    for starts in ([0, 30], (0, 30), torch.tensor([0, 30]), None):
        assert torch.equal(layer(query, points, value, shapes, starts), expected)


# -- being a module ----------------------------------------------------------------------------


@pytest.mark.parametrize("axes", LAYERS)
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_copies(copied: Callable[[Layer], Layer], axes: str) -> None:
    layer = trained(LAYERS[axes][0]())
    other = copied(layer)
    args = inputs(axes)
    assert torch.equal(other(*args), layer(*args))
    assert repr(other) == repr(layer)
    for ours, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        assert ours.data_ptr() != theirs.data_ptr()


def test_repr_says_the_sizes() -> None:
    sizes = "embed_dim=96, num_levels=1, num_heads=6, num_points=12"
    layer = STDeformAttn(96, 1, 6, 12, backend="reference")
    assert repr(layer).startswith(f"STDeformAttn(\n  {sizes}, backend='reference'\n")


def test_a_layer_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = video_layer()
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    query, points, value, shapes = inputs("video")
    out = layer(query.to("meta"), points.to("meta"), value.to("meta"), shapes)
    assert out.shape == (2, 7, 32)
