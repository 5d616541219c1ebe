"""Losses: values against hand calculation, and finite values and gradients in every odd case."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from defvis.config import Config, LossConfig
from defvis.data.clips import Batch, Targets
from defvis.models.model import DefVIS
from defvis.training import losses as losses_module
from defvis.training.losses import (
    box_losses,
    cell_classes,
    class_loss,
    focal_loss,
    mask_losses,
    mean_over_ranks,
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
    expected = torch.stack(
        [
            -0.25 * (1 - p[0]) ** 2 * p[0].log(),
            -0.75 * p[1] ** 2 * (1 - p[1]).log(),
            -0.25 * (1 - p[2]) ** 2 * p[2].log(),
        ]
    )
    torch.testing.assert_close(
        focal_loss(logits, torch.tensor([1.0, 0.0, 1.0]), LossConfig()), expected
    )


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
    boxes[0, 2] = target.boxes[1]
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
def test_mask_losses_in_chunks(
    padded: bool,
) -> None:
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


@pytest.mark.parametrize("class_output", ["sigmoid", "softmax"])
def test_denominators_are_those_of_all_processes(
    class_output: str,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean of two processes' gradients is the gradient of one batch of all clips."""
    targets = [
        make_targets([0, 2], [square_masks([True] * 4), square_masks([True] * 4, left=14)]),
        make_targets([1], [square_masks([True, False, False, False])]),
    ]
    config = changed(config, f"model.class_output={class_output}")
    model = DefVIS(config.model).eval()
    batch = _batch(targets, padded=False)

    def gradients(
        rows: slice, mean: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor | None]:
        monkeypatch.setattr(losses_module, "mean_over_ranks", mean)
        part = Batch(batch.frames[rows], None, batch.targets[rows])
        model.zero_grad()
        ClipLosses(model, config)(part)["total"].backward()
        return [parameter.grad for parameter in model.parameters()]

    whole = gradients(slice(0, 2), lambda count: count)
    counts: list[list[torch.Tensor]] = [[], []]  # of each process, in the order of the calls
    for row in range(2):
        gradients(slice(row, row + 1), _recorder(counts[row]))
    means = [(first + second) / 2 for first, second in zip(*counts, strict=True)]
    parts = []
    for row in range(2):
        calls = iter(means)
        parts.append(gradients(slice(row, row + 1), lambda _, calls=calls: next(calls)))
    for one, first, second in zip(whole, *parts, strict=True):
        assert one is not None
        torch.testing.assert_close((first + second) / 2, one, atol=1e-5, rtol=1e-4)


def _recorder(into: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def record(count: torch.Tensor) -> torch.Tensor:
        into.append(count.detach().clone())
        return count

    return record


def test_mean_over_ranks(tmp_path: Path) -> None:
    assert mean_over_ranks(torch.tensor(3.0)) == 3
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        count = torch.tensor(3.0)
        assert mean_over_ranks(count) == 3
        assert count == 3, "the argument stays as it is"
    finally:
        torch.distributed.destroy_process_group()


def test_cell_classes() -> None:
    target = make_targets(
        [2, 2], [square_masks([True] * 4, left=0), square_masks([True] * 4, left=16)]
    )
    cells = cell_classes(target, (4, 4), 3, LossConfig())
    assert cells.shape == (4, 4, 4, 3)
    # The squares fill rows 8 to 19 of 32: cells of row 1 wholly, of row 2 to a half.
    expected = torch.zeros(4, 4)
    expected[1:3, 0:4] = torch.tensor([1.0, 1.0, 1.0, 1.0])
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
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "case", ["usual", "empty clip", "all empty", "zero area", "too many", "absent"]
)
def test_finite_in_every_case(
    case: str,
    padded: bool,
    kind: str,
    config: Config,
) -> None:
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
        "usual": [usual, usual],
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


def test_every_parameter_learns(
    config: Config,
) -> None:
    model = DefVIS(config.model).train()
    for parameter in model.parameters():
        if not parameter.any():  # Layers that start at zero block the gradients of those before.
            torch.nn.init.normal_(parameter, std=0.05)
    target = make_targets([0, 2], [square_masks([True] * 4), square_masks([True] * 4, left=14)])
    batch = _batch([target, target], padded=False)
    ClipLosses(model, config)(batch)["total"].backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_loss_does_not_depend_on_batch_padding(
    config: Config,
) -> None:
    """A clip alone and the same clip in a padded batch have nearly the same class and box losses.

    Nearly, because convolutions of the backbone see past the border into the padding: the largest
    difference was 1.7 % (class).
    """
    model = DefVIS(config.model).eval()
    target = make_targets([1], [square_masks([True, True, False, True])])
    alone = Batch(torch.randn(1, 4, 3, 32, 32), None, [target])
    frames = torch.zeros(1, 6, 3, 32, 48)
    frames[:, :4, :, :, :32] = alone.frames
    padding = torch.ones(1, 6, 32, 48, dtype=torch.bool)
    padding[:, :4, :, :32] = False
    masks = torch.zeros(1, 6, 32, 48, dtype=torch.bool)
    masks[:, :4, :, :32] = target.masks
    boxes, valid = torch.zeros(1, 6, 4), torch.zeros(1, 6, dtype=torch.bool)
    boxes[:, :4], valid[:, :4] = target.boxes, target.valid
    padded = Batch(frames, padding, [Targets(target.labels, boxes, masks, valid)])
    first, second = (ClipLosses(model, config)(batch) for batch in (alone, padded))
    for name in ("class", "l1", "giou"):
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=2e-2)
