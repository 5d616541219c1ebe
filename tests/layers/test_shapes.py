"""Level tables, reference grids and valid ratios against values worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stdeform import level_starts, num_cells, reference_grid, st_deform_attn, valid_ratios


def test_level_tables() -> None:
    assert num_cells((6, 5)) == 30
    assert level_starts([(4, 6, 5), (2, 3, 3), (1, 1, 1)]) == [0, 120, 138]


def test_grid_of_a_video() -> None:
    grid = reference_grid([(2, 1, 2), (1, 1, 1)])
    assert grid.dtype == torch.float32
    assert grid.shape == (1, 5, 2, 3)
    expected = torch.tensor(
        [
            [0.25, 0.5, 0.25],
            [0.75, 0.5, 0.25],
            [0.25, 0.5, 0.75],
            [0.75, 0.5, 0.75],
            [0.5, 0.5, 0.5],
        ]
    )
    # Without valid ratios a query looks at the same place of every level.
    assert torch.equal(grid[0, :, 0], expected)
    assert torch.equal(grid[0, :, 1], expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: level_starts(torch.tensor([(4, 6, 5)])), TypeError, "rows of Python ints, such"),
        (lambda: level_starts((4, 6, 5)), TypeError, "rows of Python ints, such as [(T, H, W)]"),
        (lambda: level_starts([(4, 6, 5), (2, 3)]), ValueError, "must all be (T, H, W), all be"),
        (
            lambda: num_cells([(4, 6, 5), (2, 3, 3)]),
            TypeError,
            "shape must be (T, H, W), (H, W) or",
        ),
        (lambda: num_cells((4.0, 2, 5)), TypeError, "of at least 1, got (4.0, 2, 5)"),
        (lambda: num_cells((4, 0, 5)), ValueError, "(T, H, W), (H, W) or (T,) in Python"),
        (lambda: num_cells(torch.tensor([4, 6, 5])), TypeError, "got tensor([4, 6, 5])"),
        (lambda: reference_grid([(2, 2)], dtype=torch.long), TypeError, "got torch.int64"),
        (lambda: reference_grid([(2, 2)], [[1, 1]]), TypeError, "valid_ratios must be a Tensor"),
    ],
)
def test_wrong_tables_are_refused(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_grid_points_at_the_cells_of_its_own_level() -> None:
    """A sample at a query's own reference point reads that query's cell."""
    shapes = [(2, 3, 4), (1, 2, 2)]
    value = torch.randn(1, 28, 1, 16, dtype=torch.float64)
    grid = reference_grid(shapes, dtype=torch.float64)
    for level, start in enumerate(level_starts(shapes)):
        rows = slice(start, start + num_cells(shapes[level]))
        points = grid[:, rows, None, level : level + 1, None]
        weights = value.new_ones(points.shape[:-1])
        out = st_deform_attn(value[:, rows], shapes[level : level + 1], points, weights)
        torch.testing.assert_close(out, value[:, rows, 0], rtol=1e-12, atol=1e-12)


def test_grid_with_valid_ratios() -> None:
    # Worked out by hand for a row of 4 and a row of 2 cells, 3 and 2 of them valid.
    ratios = torch.tensor([[[0.75, 1.0], [1.0, 1.0]]])
    grid = reference_grid([(1, 4), (1, 2)], ratios)
    assert grid.shape == (1, 6, 2, 2)
    # Own level 0: (i + 0.5) / 4 / 0.75; on level 0 times 0.75, on level 1 times 1.
    torch.testing.assert_close(grid[0, :4, 0, 0], (torch.arange(4) + 0.5) / 4)
    torch.testing.assert_close(grid[0, :4, 1, 0], (torch.arange(4) + 0.5) / 3)
    # Own level 1: (i + 0.5) / 2 / 1; on level 0 times 0.75, on level 1 times 1.
    torch.testing.assert_close(grid[0, 4:, 0, 0], (torch.arange(2) + 0.5) / 2 * 0.75)
    torch.testing.assert_close(grid[0, 4:, 1, 0], (torch.arange(2) + 0.5) / 2)
    assert torch.equal(grid[..., 1], torch.full((1, 6, 2), 0.5))


def test_grid_with_the_same_ratios_on_every_level() -> None:
    shapes = [(2, 3, 4), (1, 2, 2)]
    ratios = torch.tensor([[0.75, 1.0, 0.5], [1.0, 1.0, 1.0]])
    both = reference_grid(shapes, ratios)
    assert torch.equal(both, reference_grid(shapes, ratios[:, None].expand(-1, 2, -1)))
    torch.testing.assert_close(both, reference_grid(shapes).expand(2, -1, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_grid_dtype_and_device(dtype: torch.dtype) -> None:
    for ratios in (None, torch.ones(2, 3)):
        grid = reference_grid([(2, 3, 4)], ratios, dtype=dtype)
        assert grid.dtype == dtype
        on_meta = reference_grid([(2, 3, 4)], ratios, device="meta")
        assert on_meta.device.type == "meta"
    # It goes where the ratios are.
    assert reference_grid([(2, 3, 4)], torch.ones(2, 3, device="meta")).device.type == "meta"


def test_a_half_grid_is_rounded_once() -> None:
    grid = reference_grid([(1, 3000)], dtype=torch.bfloat16)
    exact = (torch.arange(3000, dtype=torch.float32) + 0.5) / 3000
    assert torch.equal(grid[0, :, 0, 0], exact.to(torch.bfloat16))


def test_valid_ratios_of_a_video() -> None:
    mask = torch.zeros(3, 4, 3, 5, dtype=torch.bool)
    mask[1, 3:] = True  # the end
    mask[1, :, 2:] = True  # the bottom
    mask[1, :, :, 1:] = True  # the right
    mask[2] = True  # nothing but padding
    expected = torch.tensor([[1.0, 1.0, 1.0], [0.2, 2 / 3, 0.75], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(valid_ratios(mask), expected)


def test_a_sequence() -> None:
    """One axis: the cells, the grid and the ratios of rows (T,)."""
    assert [num_cells((5,)), *level_starts([(5,), (2,)])] == [5, 0, 5]
    mask = torch.tensor([[False] * 3 + [True] * 2, [True] * 5])
    ratios = valid_ratios(mask)
    torch.testing.assert_close(ratios, torch.tensor([[0.6], [1.0]]))
    as_image = reference_grid([(1, 5)], torch.cat([ratios, torch.ones(2, 1)], 1))
    assert torch.equal(reference_grid([(5,)], ratios), as_image[..., :1])


def test_an_empty_batch() -> None:
    assert valid_ratios(torch.zeros(0, 2, 3, dtype=torch.bool)).shape == (0, 2)
    assert reference_grid([(2, 3)], torch.ones(0, 2)).shape == (0, 6, 1, 2)


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        (
            [(2, 3), (1, 2, 3)],
            ValueError,
            "rows must all be (T, H, W), all be (H, W) or all be (T,),",
        ),
        ([(2, 3, 4, 5)], ValueError, "or all be (T,), got [(2, 3, 4, 5)]"),
        ([], ValueError, "spatial_shapes must have at least one row, got none"),
        ([(0, 3)], ValueError, "spatial_shapes sizes must be at least 1, got (0, 3)"),
        (138, TypeError, "spatial_shapes must be a sequence of rows of Python ints"),
        ((2, 3), TypeError, "spatial_shapes must be a sequence of rows of Python ints"),
    ],
    ids=str,
)
def test_grid_shape_errors(shapes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        reference_grid(shapes)


@pytest.mark.parametrize("sizes", [(3,), (2, 2, 3), (2, 1, 2), (2, 2)], ids=str)
def test_grid_ratio_errors(sizes: tuple[int, ...]) -> None:
    message = (
        f"valid_ratios must have shape [B, 1, 3] or [B, 3] to match spatial_shapes, got {[*sizes]}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        reference_grid([(2, 3, 4)], torch.ones(sizes))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(2, 3, 4), TypeError, "True where there is padding, got torch.float32"),
        ([[True]], TypeError, "True where there is padding, got list"),
        (torch.zeros(2, dtype=torch.bool), ValueError, "of at least 1, got [2]"),
        (torch.zeros(2, 0, 3, dtype=torch.bool), ValueError, "of at least 1, got [2, 0, 3]"),
    ],
    ids=["float", "list", "1 axis", "no rows"],
)
def test_mask_errors(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        valid_ratios(mask)
