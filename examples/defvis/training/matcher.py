"""Matching of whole instance sequences to slots (VisTR), with visibility handled per frame."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from defvis.config import LossConfig
from defvis.data.boxes import generalised_iou
from defvis.data.clips import Targets
from defvis.models.heads import class_probabilities
from defvis.models.model import Outputs


@dataclass(frozen=True)
class Match:
    """Pairs found in one clip.

    Attributes:
        slots: int64 [P].
        instances: int64 [P], rows of the clip's `Targets`.
    """

    slots: Tensor
    instances: Tensor


@torch.no_grad()
def match(outputs: Outputs, targets: Sequence[Targets], config: LossConfig) -> list[list[Match]]:
    """Assigns slots to instances, for every decoder layer and clip.

    The cost of a pair is averaged over the frames in which that instance is visible: class cost
    (focal, or minus the probability where there is a no-object class), sum of absolute box
    errors, and -GIoU, with the weights of the losses. Instances that
    are never visible are left out. If a clip has more instances than slots, the largest (by
    summed box area) are kept, with a warning.

    Args:
        outputs: Predictions of B clips.
        targets: Their B targets.
        config: Loss weights.

    Returns:
        [R][B] matches.

    Raises:
        FloatingPointError: If predictions are not finite.
    """
    layers, _, slots = outputs.class_logits.shape[:3]
    found: list[list[Match]] = [[] for _ in range(layers)]
    for clip, target in enumerate(targets):
        kept = largest(target, slots)
        if (visible := int(target.valid.any(1).sum())) > len(kept):
            warnings.warn(
                f"a clip has {visible} instances but the model only {slots} slots; "
                f"the {slots} largest are kept (raise num_slots)",
                stacklevel=2,
            )
        cost = _cost(
            outputs.class_logits[:, clip],
            outputs.boxes[:, clip],
            outputs.class_output,
            target,
            kept,
            config,
        ).cpu()
        if not cost.isfinite().all():
            raise FloatingPointError(f"predictions of clip {clip} are not finite")
        for layer in range(layers):
            rows, columns = linear_sum_assignment(cost[layer].numpy())
            found[layer].append(
                Match(
                    torch.as_tensor(rows, device=kept.device),
                    kept[torch.as_tensor(columns, device=kept.device)],
                )
            )
    return found


def matched_slots(matches: Sequence[Match]) -> tuple[Tensor, Tensor | None]:
    """Slots to predict masks of, for the clips of a batch.

    Args:
        matches: Of one decoder layer, [B].

    Returns:
        int64 [B, J], padded with slot 0, and bool [B, J], False on the padding; the second is None
        if nothing is padded.
    """
    slots = torch.nn.utils.rnn.pad_sequence([found.slots for found in matches], batch_first=True)
    counts = [len(found.slots) for found in matches]
    if len(set(counts)) == 1:
        return slots, None
    lengths = torch.tensor(counts, device=slots.device)
    return slots, torch.arange(slots.shape[1], device=slots.device) < lengths[:, None]


def largest(target: Targets, slots: int) -> Tensor:
    """Rows of the instances to match, int64 [G'] with G' <= slots: the largest that are visible."""
    visible = target.valid.any(1).nonzero()[:, 0]
    if len(visible) <= slots:
        return visible
    area = (target.boxes[visible, :, 2:].prod(-1) * target.valid[visible]).sum(1)
    return visible[area.argsort(descending=True, stable=True)[:slots].sort().values]


def _cost(
    logits: Tensor,  # [R, I, T, classes, or one more with softmax]
    boxes: Tensor,  # [R, I, T, 4]
    class_output: str,
    target: Targets,
    kept: Tensor,  # int64 [G']
    config: LossConfig,
) -> Tensor:  # [R, I, G']
    labels = target.labels[kept]
    probability = class_probabilities(logits, class_output)[..., labels]  # [R, I, T, G']
    if class_output == "sigmoid":
        alpha, gamma = config.focal_alpha, config.focal_gamma
        positive = -alpha * (1 - probability) ** gamma * (probability + 1e-8).log()
        negative = -(1 - alpha) * probability**gamma * (1 - probability + 1e-8).log()
        class_cost = positive - negative
    else:
        class_cost = -probability

    predicted, wanted = boxes[:, :, None], target.boxes[kept]  # [R, I, 1, T, 4], [G', T, 4]
    cost = (
        config.class_weight * class_cost.transpose(2, 3)  # [R, I, G', T]
        + config.l1_weight * (predicted - wanted).abs().sum(-1)
        - config.giou_weight * generalised_iou(predicted, wanted)
    )
    valid = target.valid[kept].to(cost.dtype)
    return (cost * valid).sum(-1) / valid.sum(-1)
