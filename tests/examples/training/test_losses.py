"""Losses: values against hand calculation, and finite values and gradients in every odd case."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

from defvis.config import Config, LossConfig
from defvis.data.clips import Batch, Targets
from defvis.models.model import DefVIS
from defvis.training.losses import (
    box_losses,
    cell_classes,
    class_loss,
    focal_loss,
    identity_loss,
    mask_losses,
    no_object_class_loss,
    no_object_weights,
)
from defvis.training.matcher import Match
from defvis.training.stages import ClipLosses
from tests.examples.support import changed, make_targets, square_masks


def found(slots: list[int], instances: list[int]) -> Match:
    return Match(torch.tensor(slots, dtype=torch.int64), torch.tensor(instances, dtype=torch.int64))


def test_focal_loss() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0])
    p = logits.sigmoid()
    hit, miss = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    targets = torch.tensor([1.0, 0.0, 1.0])
    expected = torch.where(targets > 0, hit, miss)
    torch.testing.assert_close(focal_loss(logits, targets, LossConfig()), expected)


def test_identity_loss() -> None:
    """Against equation 2 written out; each instance's embedding is the mean over its mask."""
    visible = [[True, True, True, False], [True, False, True, True]]
    squares = [square_masks(seen, left=left) for seen, left in zip(visible, (0, 16), strict=True)]
    embeddings = torch.randn(1, 4, 32, 32, 5, requires_grad=True)
    loss = identity_loss(embeddings, [make_targets([0, 1], squares)])
    means = {
        (number, frame): F.normalize(embeddings[0, frame][mask[frame]].mean(0), dim=0)
        for number, mask in enumerate(squares)
        for frame in range(4)
        if visible[number][frame]
    }
    expected = torch.zeros(())
    for one, anchor in means.items():
        others = {other: anchor @ mean / 0.1 for other, mean in means.items() if other != one}
        positives = [logit for other, logit in others.items() if other[0] == one[0]]
        divisor = torch.stack(list(others.values())).logsumexp(0)
        expected = expected - sum(logit - divisor for logit in positives) / len(positives)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("visible", [[[True, False, False, False]], [[False] * 4], []])
def test_identity_loss_of_nothing_to_compare(visible: list[list[bool]]) -> None:
    target = make_targets([0] * len(visible), [square_masks(seen) for seen in visible])
    embeddings = torch.randn(1, 4, 4, 4, 5, requires_grad=True)
    loss = identity_loss(embeddings, [target])
    loss.backward()
    assert loss == 0
    assert not embeddings.grad.any()


def test_class_loss_wants_the_class_in_visible_frames_only() -> None:
    target = make_targets([2], [square_masks([True, False, True, True])])
    wanted = torch.full((1, 2, 4, 3), -20.0)
    wanted[0, 1, [0, 2, 3], 2] = 20.0
    frames = torch.ones(1, 4, dtype=torch.bool)
    assert class_loss(wanted, [target], [found([1], [0])], frames, LossConfig()) < 1e-6
    absent = wanted.clone()
    absent[0, 1, 1, 2] = 20.0
    assert class_loss(absent, [target], [found([1], [0])], frames, LossConfig()) > 10
    frames[0, 1] = False  # a padded frame takes no part
    assert class_loss(absent, [target], [found([1], [0])], frames, LossConfig()) < 1e-6


def test_no_object_class_loss() -> None:
    """Weighted sum of the cross-entropy and of its weights, every (slot, frame) written out."""
    target = make_targets([2], [square_masks([True, False, True, False])])
    logits = torch.randn(1, 3, 4, 4)
    frames = torch.tensor([[True, True, True, False]])
    config = LossConfig(no_object_weight=0.25)
    total = weights = torch.zeros(())
    for slot in range(3):
        for t in range(3):
            visible = slot == 1 and t != 1
            label, weight = (2, 1.0) if visible else (3, 0.25)
            total = total - weight * logits[0, slot, t].log_softmax(0)[label]
            weights = weights + weight
    torch.testing.assert_close(
        no_object_class_loss(logits, [target], [found([1], [0])], frames, config), total
    )
    padding = ~frames[..., None, None].expand(-1, -1, 32, 32)
    batch = Batch(torch.zeros(1, 4, 3, 32, 32), padding, [target])
    torch.testing.assert_close(no_object_weights(batch, 3, config), weights)
    # Of two instances the model has a slot for one.
    two = make_targets([2, 0], [square_masks([True] * 4), square_masks([True] * 2 + [False] * 2)])
    batch = Batch(torch.zeros(1, 4, 3, 32, 32), None, [two])
    assert no_object_weights(batch, 1, config) == 4
    assert no_object_weights(batch, 3, config) == 6 + 0.25 * 6


def test_box_losses_sum_over_visible_pairs() -> None:
    target = make_targets([0, 1], [square_masks([True, False, True, False])] * 2)
    boxes = torch.rand(1, 3, 4, 4)
    boxes[0, 2] = torch.where(target.valid[1][:, None], target.boxes[1], 0.7)
    boxes[0, 2, 0, 0] += 0.25
    losses = box_losses(boxes, [target], [found([2], [1])])
    torch.testing.assert_close(losses["l1"], torch.tensor(0.25))
    # Squares of side 12 / 32, shifted by 8 / 32: overlap 1/3, hull 20 x 12, union the hull.
    torch.testing.assert_close(losses["giou"], torch.tensor(1 - 4 / 20), atol=1e-4, rtol=0)


def test_mask_losses() -> None:
    target = make_targets([0], [square_masks([True, False, True, True])])
    perfect = torch.where(target.masks, 20.0, -20.0)
    matches = [found([0], [0])]
    focal, dice = mask_losses(perfect, [target], matches, None, LossConfig())
    assert focal < 1e-6
    assert dice < 1e-3
    # Ink in the frame where the object is absent costs focal loss but no dice.
    ghost = perfect.clone()
    ghost[0, 1] = 20.0
    focal, dice = mask_losses(ghost, [target], matches, None, LossConfig())
    torch.testing.assert_close(focal, torch.tensor(0.75 * 20.0), atol=1e-3, rtol=0)
    assert dice < 1e-3
    # The same ink on padding costs nothing.
    padding = torch.zeros(1, 4, 32, 32, dtype=torch.bool)
    padding[0, 1] = True
    assert mask_losses(ghost, [target], matches, padding, LossConfig())[0] < 1e-6
    # An empty prediction: dice 1 - 1 / (area + 1) in each of three frames.
    _, dice = mask_losses(torch.full_like(perfect, -20.0), [target], matches, None, LossConfig())
    torch.testing.assert_close(dice, torch.tensor(3 * (1 - 1 / 145)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_mask_losses_in_chunks(padded: bool) -> None:
    target = make_targets(
        [0, 1, 2], [square_masks([True, False, True, True], left=4 * i) for i in range(3)]
    )
    matches = [found([0, 1, 2], [2, 0, 1])]
    padding = torch.zeros(1, 4, 32, 32, dtype=torch.bool) if padded else None
    if padding is not None:
        padding[..., 24:] = True
    logits = torch.randn(3, 4, 16, 16, requires_grad=True)
    results = []
    for chunk in (0, 1, 2):
        sums = mask_losses(logits, [target], matches, padding, LossConfig(mask_chunk=chunk))
        gradient = torch.autograd.grad(sums[0] + 2 * sums[1], logits)
        results.append((*sums, *gradient))
    for result in results[1:]:
        for chunked, whole in zip(result, results[0], strict=True):
            torch.testing.assert_close(chunked, whole)


def test_cell_classes() -> None:
    target = make_targets(
        [2, 2], [square_masks([True] * 4, left=0), square_masks([True] * 4, left=16)]
    )
    cells = cell_classes(target, (4, 4), 3, LossConfig())
    assert cells.shape == (4, 4, 4, 3)
    # The squares fill rows 8 to 19 of 32: cells of row 1 wholly, of row 2 to a half.
    expected = torch.zeros(4, 4)
    expected[1:3] = 1
    assert cells[0, :, :, 2].equal(expected)
    assert not cells[..., :2].any()


def _batch(targets: list[Targets], padded: bool) -> Batch:
    padding = None
    frames = torch.randn(len(targets), 4, 3, 32, 32)
    if padded:
        padding = torch.zeros(len(targets), 4, 32, 32, dtype=torch.bool)
        padding[0, 3] = True
        padding[0, :, :, 24:] = True
        frames[0, 3] = 0
        frames[0, :, :, :, 24:] = 0
        targets[0].valid[:, 3] = False
        targets[0].masks[:, 3] = False
    return Batch(frames, padding, targets)


@pytest.mark.parametrize("kind", ["small", "paper"])
@pytest.mark.parametrize(
    ("case", "padded"),
    [
        ("empty clip", False),
        ("all empty", True),
        ("zero area", False),
        ("too many", True),
        ("absent", False),
    ],
)
def test_finite_in_every_case(case: str, padded: bool, kind: str, config: Config) -> None:
    if kind == "paper":
        config = changed(
            config, "model.class_output=softmax", "model.mask_head=vistr", "model.queries=free",
            "model.refine_boxes=false", "model.shared_heads=true", "model.dense_classes=false",
            "model.mask_chunk=1", "loss.mask_chunk=1",
        )  # fmt: skip
    seen = [True, True, False, True]
    usual = make_targets([0, 2], [square_masks(seen), square_masks(seen, left=14)])
    empty = make_targets([], [])
    point = make_targets([1], [square_masks(seen, side=1)])
    point.boxes[..., 2:] = 0
    absent = make_targets([1], [square_masks([False] * 4)])
    many = make_targets([0] * 5, [square_masks(seen, left=2 * i) for i in range(5)])
    targets = {
        "empty clip": [empty, usual],
        "all empty": [empty, empty],
        "zero area": [point, usual],
        "absent": [absent, absent],
        "too many": [many, usual],
    }[case]
    model = DefVIS(config.model).train()
    batch = _batch(targets, padded)
    with warnings.catch_warnings():
        if case == "too many":
            warnings.filterwarnings("ignore", message="a clip has 5 instances")
        losses = ClipLosses(model, config)(batch)
    assert all(loss.isfinite() for loss in losses.values()), losses
    losses["total"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
