"""Laws of the operator, over problems that Hypothesis draws.

The reference obeys them, and every kernel agrees with the reference on such problems.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stdeform import reference, reference_grid
from stdeform.shapes import level_starts, num_cells
from stdeform.testing import Problem, assert_close, make_problem
from tests.support.cases import forward

_SIZE = st.integers(1, 5)


@st.composite
def problems(draw: st.DrawFn, axes: int | None = None) -> Problem:
    """Any small float64 problem, its points anywhere, kinks and outside included."""
    num_axes = axes or draw(st.sampled_from([2, 3]))
    shapes = draw(st.lists(st.tuples(*[_SIZE] * num_axes), min_size=1, max_size=3))
    return make_problem(
        shapes,
        batch=draw(st.integers(1, 3)),
        num_queries=draw(st.integers(1, 6)),
        num_heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([1, 3, 8, 16, 20])),
        num_points=draw(st.integers(1, 6)),
        boxes=draw(st.booleans()),
        offset_std=draw(st.sampled_from([0.0, 0.5, 3.0])),
        seed=draw(st.integers(0, 2**32)),
        dtype=torch.float64,
    )


def _result(problem: Problem, form: str) -> Tensor:
    return forward(problem, form, "reference")


def _scale_free_close(left: Tensor, right: Tensor) -> None:
    """Equal up to float64 rounding of sums of up to a few hundred normal terms."""
    torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


FACTOR = st.floats(-3, 3)


@given(problem=problems(), a=FACTOR, b=FACTOR, seed=st.integers(0, 2**32))
def test_linear_in_value(problem: Problem, a: float, b: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    other = torch.randn(problem.value.shape, generator=generator, dtype=torch.float64)
    for form in ("locations", "points"):
        both = replace(problem, value=a * problem.value + b * other)
        parts = a * _result(problem, form) + b * _result(replace(problem, value=other), form)
        _scale_free_close(_result(both, form), parts)


@given(problem=problems(), a=FACTOR, b=FACTOR, seed=st.integers(0, 2**32))
def test_linear_in_weights(problem: Problem, a: float, b: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = problem.attention_weights
    other = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    both = replace(problem, attention_weights=a * weights + b * other)
    of_other = _result(replace(problem, attention_weights=other), "locations")
    parts = a * _result(problem, "locations") + b * of_other
    _scale_free_close(_result(both, "locations"), parts)


@given(problem=problems(), constant=FACTOR)
def test_a_constant_value_gives_the_weight_inside(problem: Problem, constant: float) -> None:
    """Of each sample counts the part of its unit cell that overlaps the volume's, per axis."""
    value = torch.full_like(problem.value, constant)
    sizes = torch.tensor([row[::-1] for row in problem.spatial_shapes], dtype=torch.float64)
    cells = problem.sampling_locations * sizes[:, None] - 0.5
    inside = torch.minimum(cells + 1, sizes[:, None] - cells).clamp(0, 1).prod(-1)
    total = (problem.attention_weights * inside).sum((-2, -1))  # [B, Q, M]
    expected = constant * total.repeat_interleave(value.shape[-1], -1)
    out = _result(replace(problem, value=value), "locations")
    _scale_free_close(out, expected)


@given(problem=problems(), data=st.data())
def test_permutations_commute(problem: Problem, data: st.DataObject) -> None:
    batch, _, num_heads, head_dim = problem.value.shape
    num_queries, num_points = problem.sampling_locations.shape[1], problem.sampling_offsets.shape[4]

    def order(size: int) -> list[int]:
        return data.draw(st.permutations(range(size)))

    rows, queries, heads, points = map(order, (batch, num_queries, num_heads, num_points))

    def samples(tensor: Tensor) -> Tensor:  # [B, Q, M, L, K, ...]
        return tensor[rows][:, queries][:, :, heads][:, :, :, :, points]

    moved = Problem(
        spatial_shapes=problem.spatial_shapes,
        value=problem.value[rows][:, :, heads],
        sampling_locations=samples(problem.sampling_locations),
        attention_weights=samples(problem.attention_weights),
        reference_points=problem.reference_points[rows][:, queries],
        sampling_offsets=samples(problem.sampling_offsets),
        attention_logits=samples(problem.attention_logits),
        grad_out=problem.grad_out,
    )
    for form in ("locations", "points"):
        out = _result(problem, form)[rows][:, queries]
        out = out.unflatten(-1, (num_heads, head_dim))[:, :, heads].flatten(2)
        _scale_free_close(_result(moved, form), out)


@given(problem=problems(), data=st.data())
def test_the_order_of_levels_does_not_matter(problem: Problem, data: st.DataObject) -> None:
    shapes = problem.spatial_shapes
    order = data.draw(st.permutations(range(len(shapes))))
    starts = level_starts(shapes)
    rows = [
        problem.value[:, start : start + num_cells(shape)]
        for start, shape in zip(starts, shapes, strict=True)
    ]
    moved = replace(
        problem,
        spatial_shapes=tuple(shapes[level] for level in order),
        value=torch.cat([rows[level] for level in order], 1),
        sampling_locations=problem.sampling_locations[:, :, :, order],
        attention_weights=problem.attention_weights[:, :, :, order],
        reference_points=problem.reference_points[:, :, order],
        sampling_offsets=problem.sampling_offsets[:, :, :, order],
        attention_logits=problem.attention_logits[:, :, :, order],
    )
    for form in ("locations", "points"):
        _scale_free_close(_result(moved, form), _result(problem, form))


@given(problem=problems())
def test_mirrored_axes_commute(problem: Problem) -> None:
    """Cell i of an axis has its centre at (i + 0.5) / size: both ends are alike."""
    num_axes = len(problem.spatial_shapes[0])
    for axis in range(num_axes):  # of the location; the shape's axes are in reverse
        parts = [
            problem.value[:, start : start + num_cells(shape)]
            .unflatten(1, shape)
            .flip(num_axes - axis)
            .flatten(1, num_axes)
            for start, shape in zip(
                level_starts(problem.spatial_shapes), problem.spatial_shapes, strict=True
            )
        ]
        locations = problem.sampling_locations.clone()
        locations[..., axis] = 1 - locations[..., axis]
        mirrored = replace(problem, value=torch.cat(parts, 1), sampling_locations=locations)
        _scale_free_close(_result(mirrored, "locations"), _result(problem, "locations"))


@given(problem=problems(axes=3), data=st.data())
def test_on_a_frame_it_is_the_image_operator(problem: Problem, data: st.DataObject) -> None:
    """With all samples on the centre of a frame, video attention is image attention on it."""
    frames = [
        data.draw(st.integers(0, shape[0] - 1), label="frame") for shape in problem.spatial_shapes
    ]
    locations = problem.sampling_locations.clone()
    images = []
    for level, (start, shape) in enumerate(
        zip(level_starts(problem.spatial_shapes), problem.spatial_shapes, strict=True)
    ):
        # The centre may round to either side of itself; the neighbour then weighs 1e-16.
        locations[:, :, :, level, :, 2] = (frames[level] + 0.5) / shape[0]
        cells = num_cells(shape[1:])
        images.append(problem.value[:, start + frames[level] * cells :][:, :cells])
    video = replace(problem, sampling_locations=locations)
    image = reference.st_deform_attn(
        torch.cat(images, 1),
        [shape[1:] for shape in problem.spatial_shapes],
        problem.sampling_locations[..., :2],
        problem.attention_weights,
    )
    _scale_free_close(_result(video, "locations"), image)


@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 6)] * 2)),
    num_queries=st.integers(1, 5),
    num_heads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_with_a_point_on_every_cell_it_is_dense_attention(
    shape: tuple[int, ...], num_queries: int, num_heads: int, seed: int
) -> None:
    """The paper's limit case, K = T * H * W: the softmax over points is that over all cells."""
    cells = math.prod(shape)
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    query, key = normal(2, num_heads, num_queries, 8), normal(2, num_heads, cells, 8)
    value = normal(2, num_heads, cells, 16)
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    logits = query @ key.transpose(-1, -2) / math.sqrt(8)  # [B, M, Q, S]
    grid = reference_grid([shape], dtype=torch.float64)[:, :, 0]  # [1, S, N]
    centres = grid[:, None, None, None].expand(2, num_queries, num_heads, 1, -1, -1)
    args = value.transpose(1, 2), [shape]
    scores = logits.transpose(1, 2)[:, :, :, None]  # [B, Q, M, 1, S]
    expected = dense.transpose(1, 2).flatten(2)
    out = reference.st_deform_attn(*args, centres, scores.softmax(-1))
    _scale_free_close(out, expected)
    # The same from offsets: every query refers to one place, its offsets lead to the cells.
    anchor = torch.full((2, num_queries, 1, len(shape)), 0.5, dtype=torch.float64)
    sizes = torch.tensor(shape[::-1], dtype=torch.float64)
    out = reference.st_deform_attn_from_offsets(*args, anchor, (centres - 0.5) * sizes, scores)
    _scale_free_close(out, expected)


# As many examples as of several laws.
@settings(max_examples=4 * settings.default.max_examples)
@given(problem=problems(), factor=st.sampled_from([1.0, -1.5, 0.0]))
def test_kernels_agree_with_the_reference(kernel: str, problem: Problem, factor: float) -> None:
    """Also where weights do not sum to 1, and where they are negative or zero."""
    problem = replace(problem, attention_weights=factor * problem.attention_weights)
    for form in ("locations", "points"):
        assert_close(forward(problem, form, kernel), _result(problem, form), "forward")
