"""Sequence matching: visibility, order, more instances than slots, none at all."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch

from defvis.config import LossConfig
from defvis.data.boxes import generalised_iou
from defvis.data.clips import Targets
from defvis.models.model import Outputs
from defvis.training.matcher import match


def outputs(
    class_logits: torch.Tensor, boxes: torch.Tensor, class_output: str = "sigmoid"
) -> Outputs:
    """Outputs with the given logits [R, B, I, T, classes] and boxes [R, B, I, T, 4]."""
    nothing = torch.zeros(0)
    batch, frames = class_logits.shape[1], class_logits.shape[3]
    return Outputs(
        class_logits=class_logits,
        boxes=boxes,
        queries=nothing,
        mask_features=(),
        dense_logits=None,
        frame_mask=torch.ones(batch, frames, dtype=torch.bool),
        frame_ratios=torch.ones(batch, 2),
        class_output=class_output,
    )


def random_targets(generator: torch.Generator, instances: int, frames: int) -> Targets:
    boxes = torch.rand(instances, frames, 4, generator=generator) * 0.5 + 0.1
    valid = torch.rand(instances, frames, generator=generator) < 0.5
    valid[:, 0] |= ~valid.any(1)
    return Targets(
        labels=torch.randint(3, (instances,), generator=generator),
        boxes=boxes * valid[..., None],
        masks=torch.zeros(instances, frames, 1, 1, dtype=torch.bool),
        valid=valid,
    )


def pair_cost(
    logits: torch.Tensor, boxes: torch.Tensor, target: Targets, g: int, class_output: str
) -> float:
    """Cost of one slot [T, ...] and one instance, written out frame by frame."""
    config, total, frames = LossConfig(), 0.0, 0
    for t in range(len(boxes)):
        if not target.valid[g, t]:
            continue
        if class_output == "sigmoid":
            p = logits[t, target.labels[g]].sigmoid()
            class_cost = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
        else:
            class_cost = -logits[t].softmax(0)[target.labels[g]]
        total += float(
            2 * class_cost
            + 5 * (boxes[t] - target.boxes[g, t]).abs().sum()
            - 2 * generalised_iou(boxes[t], target.boxes[g, t])
        )
        frames += 1
    assert config.class_weight == 2
    return total / frames


@pytest.mark.parametrize("class_output", ["sigmoid", "softmax"])
@pytest.mark.parametrize("seed", range(5))
def test_finds_the_cheapest_assignment_over_visible_frames(seed: int, class_output: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = 3 if class_output == "sigmoid" else 4
    logits = torch.randn(2, 2, 4, 5, classes, generator=generator)
    boxes = torch.rand(2, 2, 4, 5, 4, generator=generator) * 0.5 + 0.1
    targets = [random_targets(generator, 3, 5), random_targets(generator, 2, 5)]
    matches = match(outputs(logits, boxes, class_output), targets, LossConfig())
    for layer, clip in itertools.product(range(2), range(2)):
        target, found = targets[clip], matches[layer][clip]
        costs = [
            [
                pair_cost(logits[layer, clip, i], boxes[layer, clip, i], target, g, class_output)
                for g in range(len(target.labels))
            ]
            for i in range(4)
        ]

        def cost(slots: Any, instances: Any, costs: list[list[float]] = costs) -> float:
            return sum(costs[i][g] for i, g in zip(slots, instances, strict=True))

        instances = range(len(target.labels))
        best = min(
            cost(slots, instances) for slots in itertools.permutations(range(4), len(instances))
        )
        assert cost(found.slots, found.instances) == pytest.approx(best, abs=1e-4)
        assert sorted(found.instances.tolist()) == list(instances)


def test_no_instance_and_never_visible_instance() -> None:
    logits, boxes = torch.zeros(1, 2, 3, 4, 3), torch.full((1, 2, 3, 4, 4), 0.5)
    nothing = random_targets(torch.Generator(), 0, 4)
    hidden = random_targets(torch.Generator().manual_seed(0), 2, 4)
    hidden.valid[0] = False
    first, second = match(outputs(logits, boxes), [nothing, hidden], LossConfig())[0]
    assert len(first.slots) == len(first.instances) == 0
    assert second.instances.tolist() == [1]


def test_more_instances_than_slots_keeps_the_largest() -> None:
    target = random_targets(torch.Generator().manual_seed(1), 5, 4)
    target.valid[:] = True
    target.boxes[:] = torch.tensor([0.5, 0.5, 0.1, 0.1])
    target.boxes[[1, 3], :, 2:] = 0.4
    few = outputs(torch.zeros(1, 1, 2, 4, 3), torch.rand(1, 1, 2, 4, 4))
    with pytest.warns(UserWarning, match="5 instances but the model only 2 slots"):
        (found,) = match(few, [target], LossConfig())[0]
    assert sorted(found.instances.tolist()) == [1, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough = outputs(torch.zeros(1, 1, 5, 4, 3), torch.rand(1, 1, 5, 4, 4))
        match(enough, [target], LossConfig())


def test_predictions_that_are_not_finite_are_an_error() -> None:
    logits = torch.full((1, 1, 2, 4, 3), torch.nan)
    target = random_targets(torch.Generator().manual_seed(0), 1, 4)
    with pytest.raises(FloatingPointError, match="clip 0 are not finite"):
        match(outputs(logits, torch.rand(1, 1, 2, 4, 4)), [target], LossConfig())
