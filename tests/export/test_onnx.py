"""Exported layers and functions in ONNX Runtime and OpenVINO, at sizes that were not exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stdeform
from stdeform.testing import make_problem
from tests.support import layers
from tests.support.cases import arguments, operator
from tests.support.exported import Exported, to_onnx

# GridSample's coordinates are fractions of a level, rounded: 10^-6 cells here, where neighbouring
# values differ by a few.
_CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 5e-6}
# Sizes of two levels, (T, H, W) or the last N of them; batch; queries. The first are exported.
_SIZES = [
    (((3, 5, 7), (2, 4, 6)), 2, 9),
    (((2, 8, 3), (5, 3, 9)), 3, 4),
    (((6, 6, 6), (1, 1, 1)), 1, 20),
]
# What the functions take: samples, and the points of both levels or of each.
_CASES: tuple[tuple[str, Any], ...] = (("locations", 3), ("points", (2, 3)), ("boxes", 3))


def _cells(maps: Sequence[Tensor]) -> tuple[Tensor, list[Any]]:
    """Features [B, C, (T, H,) W] of each level as cells [B, S, C], and the level table."""
    cells = torch.cat([features.flatten(2).transpose(1, 2) for features in maps], 1)
    return cells, [features.shape[2:] for features in maps]


class _Layers(nn.Module):
    """A layer with uniform points on reference points, and one with ragged points on boxes."""

    def __init__(self, num_axes: int) -> None:
        super().__init__()
        self.image = num_axes == 2
        make: Callable[[Any], Any] = layers.image_layer if self.image else layers.video_layer
        self.layers = nn.ModuleList(layers.trained(make(points)) for points in (3, (2, 3)))

    def forward(
        self, query: Tensor, references: list[Tensor], maps: list[Tensor], mask: Tensor
    ) -> list[Tensor]:
        cells, shapes = _cells(maps)
        rest = (None, mask) if self.image else (mask,)
        return [
            layer(query, points, cells, shapes, *rest)
            for layer, points in zip(self.layers, references, strict=True)
        ]


class _Functions(nn.Module):
    """Both functions, in all of `_CASES`."""

    def forward(self, maps: list[Tensor], samples: list[list[Tensor]]) -> list[Tensor]:
        cells, shapes = _cells(maps)
        value = cells.view(cells.shape[0], cells.shape[1], 2, 16)
        return [
            operator(form)(
                value, shapes, *each, num_points=points if isinstance(points, tuple) else None
            )
            for (form, points), each in zip(_CASES, samples, strict=True)
        ]


def _draw(num_axes: int, sizes: Any, seed: int) -> tuple[Any, list[Any]]:
    """Maps of 32 channels, and the samples that `_Functions` takes."""
    rows, batch, queries = sizes
    shapes = [row[-num_axes:] for row in rows]
    samples = []
    for form, points in _CASES:
        settings: dict[str, Any] = {"batch": batch, "num_queries": queries, "seed": seed}
        problem = make_problem(shapes, num_points=points, boxes=form == "boxes", **settings)
        samples.append(list(arguments(problem, form)[2:]))
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, 32, *shape, generator=generator) for shape in shapes]
    return maps, samples


def _layer_inputs(num_axes: int, sizes: Any, seed: int) -> tuple[Any, ...]:
    maps, samples = _draw(num_axes, sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    _, batch, queries = sizes
    query = torch.randn(batch, queries, 32, generator=generator)
    mask = torch.rand(batch, _cells(maps)[0].shape[1], generator=generator) < 0.2
    return query, [samples[1][0], samples[2][0]], maps, mask


def _check(
    model: nn.Module, exported: Exported, examples: Sequence[tuple[Any, ...]], volumes: bool
) -> None:
    for inputs in examples:
        expected = [out.detach() for out in model(*inputs)]
        torch.testing.assert_close(exported.onnxruntime(*inputs), expected, **_CLOSE)
        if not volumes:  # OpenVINO has no GridSample of volumes
            torch.testing.assert_close(exported.openvino(*inputs), expected, **_CLOSE)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("form", ["grid_sample", "gather"])
@pytest.mark.parametrize("num_axes", [2, 3])
def test_layers(num_axes: int, form: str, dynamo: bool, tmp_path: Path) -> None:
    model = _Layers(num_axes).eval()
    examples = [_layer_inputs(num_axes, sizes, seed) for seed, sizes in enumerate(_SIZES)]
    cells = tuple(range(2, 2 + num_axes))
    free = [(0, 1), (0, 1), (0, 1), (0, *cells), (0, *cells), (0, 1)]
    settings: dict[str, Any] = {"free": free, "form": form, "dynamo": dynamo, "opset_version": 20}
    exported = to_onnx(model, examples[0], tmp_path / "layers.onnx", **settings)
    assert ("GridSample" in exported.operations) == (form == "grid_sample")
    _check(model, exported, examples, volumes=form == "grid_sample" and num_axes == 3)


@pytest.mark.parametrize(
    ("num_axes", "form"),
    [(1, None), (1, "gather"), (2, None), (2, "gather"), (3, None), (3, "grid_sample")],
)
def test_functions(num_axes: int, form: str | None, tmp_path: Path) -> None:
    model = _Functions()
    examples = [_draw(num_axes, sizes, seed) for seed, sizes in enumerate(_SIZES)]
    cells = tuple(range(2, 2 + num_axes))
    samples = [(0, 1) for each in examples[0][1] for _ in each]
    settings: dict[str, Any] = {"free": [(0, *cells)] * 2 + samples, "form": form}
    # The exporter's own opset has no GridSample of volumes, and by default none is needed.
    settings["opset_version"] = 20 if form == "grid_sample" else 18
    exported = to_onnx(model, examples[0], tmp_path / "functions.onnx", **settings)
    by_default = "gather" if num_axes == 3 else "grid_sample"
    assert ("GridSample" in exported.operations) == ((form or by_default) == "grid_sample")
    if (
        num_axes > 1
    ):  # whose samples are padded with the axes that the caller gave them, six at most
        assert exported.largest_rank <= 5
    _check(model, exported, examples, volumes=form == "grid_sample" and num_axes == 3)


@pytest.mark.parametrize(
    ("dtype", "rounding", "dynamo"),
    [
        (torch.float16, 2.0**-10, True),
        (torch.float64, 1e-14, True),
        (torch.float64, 1e-14, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_axes", [2, 3])
def test_dtypes(
    num_axes: int, dtype: torch.dtype, rounding: float, dynamo: bool, tmp_path: Path
) -> None:
    model = _Layers(num_axes).eval().to(dtype)
    query, references, maps, mask = _layer_inputs(num_axes, _SIZES[0], 0)
    side = dtype if dtype == torch.float64 else torch.float32
    points = [each.to(side) for each in references]
    inputs = (query.to(dtype), points, [each.to(dtype) for each in maps], mask)
    exported = to_onnx(model, inputs, tmp_path / "layers.onnx", dynamo=dynamo)
    expected = [out.detach() for out in model(*inputs)]
    # One rounding of the result, and those of the projections before and after.
    close = {"rtol": 2 * rounding, "atol": 2 * rounding}
    torch.testing.assert_close(exported.onnxruntime(*inputs), expected, **close)


class _Attention(nn.Module):
    """The function at given locations."""

    def forward(self, maps: list[Tensor], locations: Tensor, weights: Tensor) -> list[Tensor]:
        cells, shapes = _cells(maps)
        return [stdeform.st_deform_attn(cells[:, :, None], shapes, locations, weights)]


@pytest.mark.parametrize("form", ["grid_sample", "gather"])
@pytest.mark.parametrize("num_axes", [2, 3])
def test_samples_at_borders_and_without_a_place(num_axes: int, form: str, tmp_path: Path) -> None:
    maps, _ = _draw(num_axes, _SIZES[0], 0)
    places = [0.0, 0.125, 0.5, 1.0, -0.125, 1.125, -1e-7, 1.0 + 1e-6, 7.0, 1e30, -1e38]
    special = torch.tensor([*places, float("nan"), float("inf"), -float("inf")])
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(special), (2, 300, 1, 2, 2, num_axes), generator=generator)
    inputs = (maps, special[chosen], torch.rand(2, 300, 1, 2, 2, generator=generator))
    model = _Attention()
    exported = to_onnx(model, inputs, tmp_path / "x.onnx", form=form, opset_version=20)
    _check(model, exported, [inputs], volumes=form == "grid_sample" and num_axes == 3)


def test_more_cells_than_float32_counts(tmp_path: Path) -> None:
    small = ([torch.randn(1, 1, 5, 6)], torch.rand(1, 7, 1, 1, 1, 2), torch.ones(1, 7, 1, 1, 1))
    free = [(2, 3), (), ()]
    model = _Attention()
    exported = to_onnx(model, small, tmp_path / "x.onnx", form="gather", free=free)
    side = 4100  # more than 2^24 cells
    level = torch.zeros(1, 1, side, side)
    level[0, 0, -1, -7:] = torch.arange(1.0, 8.0)
    x = (torch.arange(side - 7, side) + 0.5) / side
    locations = torch.stack([x, torch.full_like(x, 1 - 0.5 / side)], -1)
    (out,) = exported.onnxruntime([level], locations.view(small[1].shape), small[2])
    # Locations are rounded to 2^-24 of 4,100 cells, and neighbouring values differ by up to 7.
    torch.testing.assert_close(out.flatten(), torch.arange(1.0, 8.0), rtol=0, atol=4e-3)
