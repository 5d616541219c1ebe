"""What the flop counter of PyTorch says of the operator."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import stdeform
from stdeform.testing import make_problem
from tests.support.cases import IMAGE, VIDEO

pytestmark = pytest.mark.usefixtures("needs_native")


@pytest.mark.parametrize("shapes", [VIDEO, IMAGE])
def test_forward_and_backward(shapes: tuple[tuple[int, ...], ...]) -> None:
    problem = make_problem(shapes, batch=2, num_queries=7, num_heads=2, head_dim=16, num_points=3)
    corners = 2 ** len(shapes[0])
    expected = 2 * (2 * 7 * 2 * 2 * 3) * corners * 16  # B, Q, M, L, K
    problem.requires_grad_()
    with FlopCounterMode(display=False) as forward:
        out = stdeform.st_deform_attn_from_offsets(*problem.from_offsets)
    assert forward.get_total_flops() == expected
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * expected


def test_only_what_is_asked_for_counts() -> None:
    problem = make_problem()
    problem.value.requires_grad_()
    with FlopCounterMode(display=False) as forward:
        out = stdeform.st_deform_attn(*problem.attention)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == forward.get_total_flops()


def test_counted_layers_include_their_projections() -> None:
    layer = stdeform.STDeformAttn(embed_dim=32, num_heads=4, num_points=6)
    shapes = [(2, 3, 4)]
    x = torch.randn(1, 24, 32)
    with FlopCounterMode(display=False) as counter:
        layer(x, stdeform.reference_grid(shapes), x, shapes)
    projections = 2 * 24 * 32 * (32 + 32 + 4 * 6 * 3 + 4 * 6)
    operator = 2 * 24 * 4 * 6 * 8 * 8  # queries, heads, points, corners, channels
    assert counter.get_total_flops() == projections + operator
