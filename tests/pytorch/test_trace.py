"""`torch.jit.trace`, in which the sizes of a tensor are 0-d tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stdeform
from stdeform import _dispatch
from tests.support.cases import FORMS, arguments, draw, operator

# That checks compare sizes in Python, as checks do; and that tracing is an old way.
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning"
)


class _Encoder(nn.Module):
    """A model that reads its level table from its features, and whose first axis may be fixed."""

    def __init__(self, num_axes: int, backend: Any) -> None:
        super().__init__()
        kind = stdeform.MSDeformAttn if num_axes == 2 else stdeform.STDeformAttn
        self.layer = kind(8, 2, 2, 3, backend=backend)
        nn.init.normal_(self.layer.sampling_offsets.weight, std=0.3)
        nn.init.normal_(self.layer.attention_weights.weight)

    def forward(self, features: Tensor, smaller: Tensor) -> Tensor:
        shapes = [tuple(level.shape[2:]) for level in (features, smaller)]
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in (features, smaller)], 1)
        mask = torch.zeros(smaller.shape[2:], dtype=torch.bool)[None]
        mask = torch.cat([mask[..., :-1], ~mask[..., :1]], -1)
        ratios = torch.stack([torch.ones(1, len(shapes[0])), stdeform.valid_ratios(mask)], 1)
        points = stdeform.reference_grid(shapes, ratios)
        starts = stdeform.level_starts(shapes)
        out: Tensor = self.layer(cells, points, cells, shapes)
        return torch.cat([out[:, starts[1] :], out[:, : stdeform.num_cells(shapes[0])]], 1)


def _features(num_axes: int, batch: int, size: int) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(batch, 8, *(size, size + 1, size - 1)[:num_axes]),
        torch.randn(batch, 8, *(2, size - 1, 3)[:num_axes]),
    )


@pytest.fixture(params=["native", "reference"])
def either(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        request.getfixturevalue("needs_native")
    return str(request.param)


@pytest.mark.parametrize("num_axes", [2, 3])
def test_a_model_under_other_sizes(either: str, num_axes: int, tmp_path: Path) -> None:
    model = _Encoder(num_axes, either)
    traced = torch.jit.trace(model, _features(num_axes, 2, 4))
    torch.jit.save(traced, tmp_path / "model.pt")
    for module in (traced, torch.jit.load(tmp_path / "model.pt")):
        for batch, size in ((2, 4), (1, 6), (3, 3)):
            features = _features(num_axes, batch, size)
            torch.testing.assert_close(module(*features), model(*features))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fast_path", [True, False])
def test_gradients_under_other_sizes(
    form: str, fast_path: bool, either: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "fast_path", fast_path)

    def attend(video: Tensor, *others: Tensor) -> Tensor:
        table = [tuple(video.shape[1:4])]
        return operator(form, either)(video.flatten(1, 3), table, *others)

    def inputs(shape: tuple[int, ...], batch: int) -> list[Tensor]:
        value, _, *others = arguments(draw(form, [shape], batch=batch), form)
        return [tensor.requires_grad_() for tensor in (value.unflatten(1, shape), *others)]

    traced = torch.jit.trace(attend, tuple(inputs((4, 6, 5), 2)))
    for shape, batch in (((4, 6, 5), 2), ((2, 3, 7), 1)):
        args = inputs(shape, batch)
        got, want = traced(*args), attend(*args)
        torch.testing.assert_close(got, want)
        for one, other in zip(
            torch.autograd.grad(got.sum(), args), torch.autograd.grad(want.sum(), args), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_some_sizes_may_be_ints(either: str) -> None:
    def attend(video: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        table = [(2, video.shape[2], 3)]
        return operator("locations", either)(video.flatten(1, 3), table, locations, weights)

    def inputs(height: int) -> list[Tensor]:
        value, _, *others = draw("locations", [(2, height, 3)]).attention
        return [value.unflatten(1, (2, height, 3)), *others]

    traced = torch.jit.trace(attend, tuple(inputs(4)))
    torch.testing.assert_close(traced(*inputs(6)), attend(*inputs(6)))


def test_one_axis(either: str) -> None:
    def attend(signal: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return operator("locations", either)(signal, [(signal.shape[1],)], locations, weights)

    def inputs(length: int) -> tuple[Tensor, ...]:
        value, _, *others = draw("locations", [(1, length)]).attention
        return value, others[0][..., :1], others[1]

    traced = torch.jit.trace(attend, inputs(5))
    torch.testing.assert_close(traced(*inputs(9)), attend(*inputs(9)))


def test_sizes_are_tensors_only_while_tracing() -> None:
    value, _, *others = draw("locations", [(4, 5)]).attention
    sizes = (torch.tensor(4), torch.tensor(5))
    with pytest.raises(TypeError, match="spatial_shapes must hold Python ints, got Tensor"):
        stdeform.st_deform_attn(value, [sizes], *others)
    with pytest.raises(TypeError, match="Python ints"):
        stdeform.num_cells(sizes)

    def attend(size: Tensor) -> Tensor:
        return stdeform.st_deform_attn(value, [(size, 5)], *others)

    for wrong in (torch.tensor(4.0), torch.tensor([4]), torch.tensor(True)):
        with pytest.raises(TypeError, match="spatial_shapes must hold Python ints, got Tensor"):
            torch.jit.trace(attend, (wrong,))
