"""The layers: initialisation, arithmetic, padding, dtypes, state dicts, copies, errors."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stdeform import MSDeformAttn, STDeformAttn, modules, num_cells, reference_grid
from stdeform.testing import composite_from_offsets

VIDEO = [(4, 3, 5), (2, 2, 3)]  # 60 + 12 cells
IMAGE = [(6, 5), (3, 3)]  # 30 + 9 cells

Layer = STDeformAttn | MSDeformAttn


def _video_layer(**settings: Any) -> STDeformAttn:
    return STDeformAttn(32, num_heads=4, num_levels=2, num_points=6, **settings)


def _image_layer(**settings: Any) -> MSDeformAttn:
    return MSDeformAttn(32, num_levels=2, num_heads=4, num_points=3, **settings)


LAYERS: dict[str, tuple[Callable[..., Layer], list[tuple[int, ...]]]] = {
    "video": (_video_layer, VIDEO),
    "image": (_image_layer, IMAGE),
}


def _trained(layer: Layer) -> Layer:
    """Weights as after some training: every parameter matters."""
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2
        parameter.data += noise.to(parameter)
    return layer


def _inputs(
    axes: str, *, batch: int = 2, num_queries: int = 7, boxes: bool = False
) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, ...]]]:
    shapes = LAYERS[axes][1]
    generator = torch.Generator().manual_seed(0)

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator)

    num_axes = len(shapes[0])
    points = uniform(batch, num_queries, len(shapes), num_axes)
    if boxes:
        points = torch.cat([points, 0.1 + 0.4 * uniform(*points.shape)], -1)
    value = uniform(batch, sum(map(num_cells, shapes)), 32) - 0.5
    return uniform(batch, num_queries, 32) - 0.5, points, value, shapes


def _by_hand(
    layer: Layer, query: Tensor, points: Tensor, value: Tensor, shapes: Any, mask: Any = None
) -> Tensor:
    """What the layer should give, from its parameters and `grid_sample`."""
    heads, levels, k = layer.num_heads, layer.num_levels, layer.num_points
    batch, num_queries, channels = query.shape
    linear = nn.functional.linear
    offsets = linear(query, layer.sampling_offsets.weight, layer.sampling_offsets.bias)
    logits = linear(query, layer.attention_weights.weight, layer.attention_weights.bias)
    rows = linear(value, layer.value_proj.weight, layer.value_proj.bias)
    if mask is not None:
        rows = rows * ~mask[..., None]
    out = composite_from_offsets(
        rows.view(batch, -1, heads, channels // heads),
        shapes,
        points,
        offsets.view(batch, num_queries, heads, levels, k, len(shapes[0])),
        logits.view(batch, num_queries, heads, levels, k),
    )
    return linear(out, layer.output_proj.weight, layer.output_proj.bias)


# -- initialisation ----------------------------------------------------------------------------


def _initial(layer: Layer, num_axes: int) -> Tensor:
    """The offsets at the start, [M, L, K, N]."""
    bias = layer.sampling_offsets.bias.detach()
    return bias.view(layer.num_heads, layer.num_levels, layer.num_points, num_axes)


def test_image_heads_look_in_compass_directions() -> None:
    layer = MSDeformAttn()
    offsets = _initial(layer, 2)
    compass = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    for level in range(4):
        for point in range(4):
            expected = compass * (point + 1.0)
            torch.testing.assert_close(offsets[:, level, point], expected, rtol=0, atol=1e-6)


def test_directions_of_other_numbers_of_heads() -> None:
    offsets = _initial(MSDeformAttn(30, 1, num_heads=3, num_points=2), 2)
    # At 0, 120 and 240 degrees, on the square ring of radius 1.
    expected = torch.tensor([[1, 0], [-math.tan(math.pi / 6), 1], [-math.tan(math.pi / 6), -1]])
    torch.testing.assert_close(offsets[:, 0, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(offsets[:, 0, 1], 2 * expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_points", "steps", "radii"),
    [
        (1, [0], [1]),
        (2, [0, 0], [1, 2]),
        (3, [-1, 0, 1], [1, 1, 1]),
        (4, [-1, 0, 1, -1], [1, 1, 1, 2]),
        (5, [-2, -1, 0, 1, 2], [1] * 5),
        (12, [-2, -1, 0, 1, 2] * 2 + [-2, -1], [1] * 5 + [2] * 5 + [3] * 2),
        (32, ([-2, -1, 0, 1, 2] * 7)[:32], [k // 5 + 1 for k in range(32)]),
    ],
    ids=lambda case: str(case) if isinstance(case, int) else "",
)
def test_video_heads_spread_over_frames(
    num_points: int, steps: list[int], radii: list[int]
) -> None:
    offsets = _initial(STDeformAttn(32, 8, 2, num_points), 3)
    compass = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    expected = torch.cat(
        [
            compass[:, None] * torch.tensor(radii)[:, None],
            torch.tensor(steps)[:, None].expand(8, -1, 1),
        ],
        -1,
    ).float()
    for level in range(2):
        torch.testing.assert_close(offsets[:, level], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axes", LAYERS)
def test_weights_are_uniform_and_offsets_fixed_at_the_start(axes: str) -> None:
    layer = LAYERS[axes][0]()
    for projection in (layer.sampling_offsets, layer.attention_weights):
        assert not projection.weight.any()
    assert not layer.attention_weights.bias.any()
    # So a query does not matter yet.
    query, points, value, shapes = _inputs(axes)
    out = layer(query, points, value, shapes)
    assert torch.equal(out, layer(torch.zeros_like(query), points, value, shapes))


def test_projections_start_as_xavier_without_bias() -> None:
    layer = STDeformAttn()
    bound = math.sqrt(6 / (384 + 384))
    for projection in (layer.value_proj, layer.output_proj):
        assert projection.weight.abs().max() <= bound
        assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not projection.bias.any()


def test_reset_parameters_restores_the_start() -> None:
    layer = _video_layer()
    start = _initial(layer, 3).clone()
    _trained(layer).reset_parameters()
    assert torch.equal(_initial(layer, 3), start)
    assert not layer.attention_weights.weight.any()


def test_at_the_start_one_head_reads_several_frames_on_both_sides() -> None:
    """The gradient of the value shows which frames a query in the middle one looks at."""
    layer = STDeformAttn(8, num_heads=1, num_points=32)
    value = torch.randn(1, 9 * 15 * 15, 8, requires_grad=True)
    centre = torch.full((1, 1, 3), 0.5)
    layer(torch.zeros(1, 1, 8), centre, value, [(9, 15, 15)]).sum().backward()
    assert value.grad is not None
    touched = value.grad.view(9, -1).any(-1).nonzero().flatten().tolist()
    assert touched == [2, 3, 4, 5, 6]


def test_defaults_are_the_papers() -> None:
    video = STDeformAttn()
    assert (video.embed_dim, video.num_heads, video.num_levels, video.num_points) == (384, 8, 1, 32)
    assert video.sampling_offsets.weight.shape == (768, 384)
    assert video.attention_weights.weight.shape == (256, 384)
    image = MSDeformAttn()
    assert (image.embed_dim, image.num_levels, image.num_heads, image.num_points) == (256, 4, 8, 4)
    positional = MSDeformAttn(64, 3, 4, 2)
    assert (positional.num_levels, positional.num_heads, positional.num_points) == (3, 4, 2)


# -- what is computed --------------------------------------------------------------------------


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("axes", LAYERS)
def test_output(on_cpu: str, axes: str, boxes: bool) -> None:
    layer = _trained(LAYERS[axes][0](backend=on_cpu)).double()
    query, points, value, shapes = _inputs(axes, boxes=boxes)
    args = query.double(), points.double(), value.double(), shapes
    torch.testing.assert_close(layer(*args), _by_hand(layer, *args), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", LAYERS)
def test_gradients_reach_everything(axes: str) -> None:
    layer = _trained(LAYERS[axes][0]()).double()
    query, points, value, shapes = _inputs(axes, boxes=True)
    leaves = [tensor.double().requires_grad_() for tensor in (query, points, value)]
    every = [*leaves, *layer.parameters()]
    got = torch.autograd.grad(layer(*leaves, shapes).square().sum(), every)
    want = torch.autograd.grad(_by_hand(layer, *leaves, shapes).square().sum(), every)
    for one, other in zip(got, want, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
def test_reference_points_broadcast(boxes: bool) -> None:
    layer = _trained(_video_layer())
    query, points, value, shapes = _inputs("video", boxes=boxes)
    same = points[:, :, :1].expand_as(points)
    assert torch.equal(
        layer(query, points[:, :, 0], value, shapes), layer(query, same, value, shapes)
    )
    first = points[:1].expand_as(points)
    assert torch.equal(layer(query, points[:1], value, shapes), layer(query, first, value, shapes))
    both = points[:1, :, :1].expand_as(points)
    assert torch.equal(
        layer(query, points[:1, :, 0], value, shapes), layer(query, both, value, shapes)
    )


def test_gradients_of_broadcast_points_add_up() -> None:
    layer = _trained(_video_layer()).double()
    query, points, value, shapes = _inputs("video")
    shared = points[:1, :, 0].double().requires_grad_()
    full = shared.detach()[:, :, None].expand_as(points).clone().requires_grad_()
    for leaf in (shared, full):
        layer(query.double(), leaf, value.double(), shapes).sum().backward()
    assert shared.grad is not None
    assert full.grad is not None
    torch.testing.assert_close(shared.grad, full.grad.sum((0, 2), keepdim=True)[:, :, 0])


@pytest.mark.parametrize("axes", LAYERS)
def test_the_backend_is_passed_on(axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = modules.st_deform_attn_from_offsets

    def watched(*args: Any, backend: Any) -> Tensor:
        asked.append(backend)
        return real(*args, backend=backend)

    monkeypatch.setattr(modules, "st_deform_attn_from_offsets", watched)
    layer = LAYERS[axes][0](backend="reference")
    layer(*_inputs(axes))
    layer.backend = "auto"
    layer(*_inputs(axes))
    assert asked == ["reference", "auto"]


def test_an_encoder_step() -> None:
    """Every cell is a query; the grid of one row serves the batch."""
    layer = _trained(_video_layer())
    _, _, value, shapes = _inputs("video")
    grid = reference_grid(shapes)
    out = layer(value, grid, value, shapes)
    assert out.shape == value.shape
    expected = _by_hand(layer, value, grid.expand(2, -1, -1, -1), value, shapes)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_empty_batch_and_no_queries() -> None:
    layer = _video_layer()
    for batch, num_queries in ((0, 7), (2, 0)):
        query, points, value, shapes = _inputs("video", batch=batch, num_queries=num_queries)
        assert layer(query, points, value, shapes).shape == (batch, num_queries, 32)


# -- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", LAYERS)
def test_padding_counts_as_zero_after_the_projection(axes: str) -> None:
    layer = _trained(LAYERS[axes][0]()).double()
    query, points, value, shapes = _inputs(axes)
    args = query.double(), points.double(), value.double(), shapes
    mask = torch.rand(value.shape[:2]) < 0.3
    extra = (None, mask) if axes == "image" else (mask,)
    out = layer(*args, *extra)
    torch.testing.assert_close(out, _by_hand(layer, *args, mask), rtol=1e-10, atol=1e-10)
    # The bias of the projection would make it differ from zeros before it.
    zeroed = args[2].masked_fill(mask[..., None], 0.0)
    assert not torch.allclose(out, layer(args[0], args[1], zeroed, shapes))


def test_padding_does_not_leak_and_gets_no_gradient() -> None:
    layer = _trained(_video_layer())
    query, points, value, shapes = _inputs("video")
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
    real = modules.st_deform_attn_from_offsets

    def watched(value: Tensor, shapes: Any, points: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.update(value=value.dtype, points=points.dtype)
        return real(value, shapes, points, *rest, **options)

    monkeypatch.setattr(modules, "st_deform_attn_from_offsets", watched)
    layer = _trained(_video_layer())
    query, points, value, shapes = _inputs("video")
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
    query, points, value, shapes = _inputs(axes)
    expected = layer(query, points, value, shapes)
    layer = layer.to(dtype)
    for side in (dtype, torch.float32):
        out = layer(query.to(dtype), points.to(side), value.to(dtype), shapes)
        assert out.dtype == dtype
        # The start pattern reads at whole cells from the reference point, which side rounds.
        coarse = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        error = (out.double() - expected.double()).square().mean().sqrt()
        assert error < 16 * coarse * expected.square().mean().sqrt()


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
        out, _by_hand(layer, value, grid, value, shapes), rtol=1e-4, atol=1e-4
    )


def test_shapes_as_rows_or_as_a_tensor() -> None:
    layer = _trained(_image_layer())
    query, points, value, shapes = _inputs("image")
    expected = layer(query, points, value, shapes)
    for rows in (torch.tensor(shapes), torch.tensor(shapes, dtype=torch.int32)):
        assert torch.equal(layer(query, points, value, rows), expected)
    for starts in ([0, 30], (0, 30), torch.tensor([0, 30]), None):
        assert torch.equal(layer(query, points, value, shapes, starts), expected)


def test_shapes_on_a_device_are_not_read() -> None:
    layer = _image_layer()
    query, points, value, shapes = _inputs("image")
    with pytest.raises(TypeError, match="got a tensor on meta; reading it would stall the device"):
        layer(query, points, value, torch.tensor(shapes, device="meta"))
    # Level starts on a device cannot be checked without a stall, and are not needed.
    layer(query, points, value, shapes, torch.tensor([7, 7], device="meta"))


# -- being a module ----------------------------------------------------------------------------


@pytest.mark.parametrize("axes", LAYERS)
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_copies(copied: Callable[[Layer], Layer], axes: str) -> None:
    layer = _trained(LAYERS[axes][0]())
    other = copied(layer)
    args = _inputs(axes)
    assert torch.equal(other(*args), layer(*args))
    assert repr(other) == repr(layer)
    for ours, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        assert ours.data_ptr() != theirs.data_ptr()


def test_repr_says_the_sizes() -> None:
    assert repr(STDeformAttn(96, 6, 1, 12)).startswith(
        "STDeformAttn(\n  embed_dim=96, num_heads=6, num_levels=1, num_points=12, backend='auto'\n"
    )
    assert "num_levels=4, num_points=4, backend='reference'" in repr(
        MSDeformAttn(backend="reference")
    )


def test_a_layer_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = _video_layer()
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    query, points, value, shapes = _inputs("video")
    out = layer(query.to("meta"), points.to("meta"), value.to("meta"), shapes)
    assert out.shape == (2, 7, 32)


def test_a_training_step_lowers_the_loss() -> None:
    layer = _video_layer()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    query, points, value, shapes = _inputs("video")
    target = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(50):
        loss = (layer(query, points, value, shapes) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"embed_dim": 30, "num_heads": 8},
            ValueError,
            "embed_dim must be a multiple of num_heads, 8, got 30",
        ),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_points": -1}, ValueError, "num_points must be at least 1, got -1"),
        ({"num_levels": 1.0}, TypeError, "num_levels must be an int, got float"),
        ({"num_levels": True}, TypeError, "num_levels must be an int, got bool"),
        (
            {"backend": "cuda"},
            ValueError,
            "backend must be one of auto, native, reference, got 'cuda'",
        ),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
@pytest.mark.parametrize("layer", [STDeformAttn, MSDeformAttn])
def test_constructor_errors(
    layer: Callable[..., Layer], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        layer(**settings)


CALLS: dict[str, tuple[str, dict[int, Any], type[Exception], str]] = {
    # Which layer, which of its arguments become what, the error.
    "query no tensor": ("video", {0: None}, TypeError, "query must be a Tensor, got NoneType"),
    "query flat": (
        "video",
        {0: torch.zeros(7, 32)},
        ValueError,
        "query must have 3 axes, the last of embed_dim = 32 channels, got shape [7, 32]",
    ),
    "query too wide": (
        "video",
        {0: torch.zeros(2, 7, 33)},
        ValueError,
        "query must have 3 axes, the last of embed_dim = 32 channels, got shape [2, 7, 33]",
    ),
    "points no tensor": (
        "video",
        {1: [0.5] * 3},
        TypeError,
        "reference_points must be a Tensor, got list",
    ),
    **{
        f"points of shape {sizes}": (
            "video",
            {1: torch.zeros(sizes)},
            ValueError,
            "reference_points must have shape [2, 7, 2, 3] (points) or [..., 6] (centre then "
            f"size); the levels may be left out and the batch may be 1; got {[*sizes]}",
        )
        for sizes in ((2, 3), (3, 7, 2, 3), (2, 1, 2, 3), (2, 7, 1, 3), (2, 7, 2, 2), (2, 7, 4))
    },
    "value no tensor": ("video", {2: 0}, TypeError, "value must be a Tensor, got int"),
    "value too narrow": (
        "video",
        {2: torch.zeros(2, 72, 16)},
        ValueError,
        "value must have 3 axes, the last of embed_dim = 32 channels, got shape [2, 72, 16]",
    ),
    "value too short": (
        "video",
        {2: torch.zeros(2, 71, 32)},
        ValueError,
        "value must have shape [2, 72, 32] to match query and spatial_shapes, got [2, 71, 32]",
    ),
    "value of another batch": (
        "video",
        {2: torch.zeros(1, 72, 32)},
        ValueError,
        "value must have shape [2, 72, 32] to match query and spatial_shapes, got [1, 72, 32]",
    ),
    "image value too short": (
        "image",
        {2: torch.zeros(2, 38, 32)},
        ValueError,
        "input_flatten must have shape [2, 39, 32] to match query and spatial_shapes, "
        "got [2, 38, 32]",
    ),
    "shapes a tensor": (
        "video",
        {3: torch.tensor(VIDEO)},
        TypeError,
        "spatial_shapes must be a sequence of rows of Python ints",
    ),
    "one level": (
        "video",
        {3: [(4, 3, 6)]},
        ValueError,
        "spatial_shapes must have num_levels = 2 rows, got 1",
    ),
    "shapes of floats": (
        "image",
        {3: torch.ones(2, 2)},
        TypeError,
        "input_spatial_shapes must hold integers, got torch.float32",
    ),
    "shapes flat": (
        "image",
        {3: torch.tensor([6, 5])},
        ValueError,
        "input_spatial_shapes must have shape [L, 2], got [2]",
    ),
    "wrong level starts": (
        "image",
        {4: torch.tensor([0, 31])},
        ValueError,
        "input_level_start_index must be [0, 30] to match input_spatial_shapes, got [0, 31]",
    ),
    "mask of floats": (
        "video",
        {4: torch.zeros(2, 72)},
        TypeError,
        "padding_mask must be a bool Tensor, True where there is padding, got torch.float32",
    ),
    "mask no tensor": (
        "image",
        {5: [True]},
        TypeError,
        "input_padding_mask must be a bool Tensor, True where there is padding, got list",
    ),
    "mask too short": (
        "image",
        {5: torch.zeros(2, 38, dtype=torch.bool)},
        ValueError,
        "input_padding_mask must have shape [2, 39] to match input_flatten, got [2, 38]",
    ),
    "points of another dtype": (
        "video",
        {1: torch.zeros(2, 7, 3, dtype=torch.float64)},
        TypeError,
        "reference_points must be float32 or of value's dtype, torch.float32, got torch.float64",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_call_errors(case: str) -> None:
    axes, changes, error, message = CALLS[case]
    args: list[Any] = [*_inputs(axes), None, None][: 5 if axes == "video" else 6]
    for position, changed in changes.items():
        args[position] = changed
    with pytest.raises(error, match=re.escape(message)):
        LAYERS[axes][0]()(*args)
