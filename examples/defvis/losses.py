"""All losses of a step, divided by the number of visible (instance, frame) pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from defvis.boxes import generalised_iou
from defvis.config import LossConfig
from defvis.data.clips import Batch, Targets
from defvis.matcher import Match, match
from defvis.model import Outputs


def compute_losses(
    outputs: Outputs,
    batch: Batch,
    predict_masks: Callable[[Outputs, Tensor], Tensor],
    config: LossConfig,
) -> dict[str, Tensor]:
    """Computes the losses of a batch of clips.

    Class and box losses are taken on every decoder layer, each with its own matching; mask losses
    on the last, for matched slots only. A frame in which a matched instance is absent is trained
    to have no class and an empty mask; padded frames and pixels take no part. A batch without
    any instance gives finite losses.

    Args:
        outputs: Predictions.
        batch: The clips with their targets.
        predict_masks: `DefVIS.predict_masks`.
        config: Weights.

    Returns:
        Scalars: "total" (weighted sum, to be differentiated), and unweighted for the log, last
        decoder layer: "class", "l1", "giou", "mask", "dice", "dense".
    """
    targets = batch.targets
    matches = match(outputs, targets, config)
    pairs = max(1, sum(int(target.valid.sum()) for target in targets))
    total = outputs.class_logits.new_zeros(())
    losses: dict[str, Tensor] = {}
    for layer, layer_matches in enumerate(matches):
        losses = {
            "class": class_loss(
                outputs.class_logits[layer], targets, layer_matches, outputs.frame_mask, config
            )
            / pairs,
            **{
                name: loss / pairs
                for name, loss in box_losses(outputs.boxes[layer], targets, layer_matches).items()
            },
        }
        total = total + (
            config.class_weight * losses["class"]
            + config.l1_weight * losses["l1"]
            + config.giou_weight * losses["giou"]
        )
    slots, present = _pad_slots(matches[-1])
    logits = predict_masks(outputs, slots)[present]  # [P, T, h, w], clip by clip
    mask, dice = mask_losses(logits, targets, matches[-1], batch.padding_mask, config)
    losses["mask"], losses["dice"] = mask / pairs, dice / pairs
    losses["dense"] = torch.stack(
        [dense_loss(logits, batch, config) for logits in outputs.dense_logits]
    ).sum()
    total = (
        total
        + config.mask_weight * losses["mask"]
        + config.dice_weight * losses["dice"]
        + config.dense_weight * losses["dense"]
    )
    return {"total": total, **{name: loss.detach() for name, loss in losses.items()}}


def focal_loss(logits: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """Sigmoid focal loss of every element (Lin et al., ICCV 2017, equation 5)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = torch.lerp(logits.sigmoid(), 1 - logits.sigmoid(), targets)
    weight = config.focal_alpha * targets + (1 - config.focal_alpha) * (1 - targets)
    return weight * miss**config.focal_gamma * entropy


def class_loss(
    logits: Tensor,
    targets: Sequence[Targets],
    matches: Sequence[Match],
    frame_mask: Tensor,
    config: LossConfig,
) -> Tensor:
    """Summed focal loss of logits [B, I, T, classes] over real frames."""
    wanted = torch.zeros_like(logits)
    for clip, (target, found) in enumerate(zip(targets, matches, strict=True)):
        labels = target.labels[found.instances]
        wanted[clip, found.slots, :, labels] = target.valid[found.instances].to(logits.dtype)
    loss = focal_loss(logits, wanted, config).sum(-1)
    return (loss * frame_mask[:, None]).sum()


def box_losses(
    boxes: Tensor, targets: Sequence[Targets], matches: Sequence[Match]
) -> dict[str, Tensor]:
    """Summed L1 and 1 - GIoU of boxes [B, I, T, 4] over visible pairs."""
    predicted = torch.cat([boxes[clip, found.slots] for clip, found in enumerate(matches)])
    wanted = _gather([target.boxes for target in targets], matches)
    valid = _gather([target.valid for target in targets], matches)
    predicted, wanted = predicted[valid], wanted[valid]
    return {
        "l1": (predicted - wanted).abs().sum(),
        "giou": (1 - generalised_iou(predicted, wanted)).sum(),
    }


def mask_losses(
    logits: Tensor,
    targets: Sequence[Targets],
    matches: Sequence[Match],
    padding_mask: Tensor | None,
    config: LossConfig,
) -> tuple[Tensor, Tensor]:
    """Mask losses of P matched sequences.

    Args:
        logits: [P, T, h, w], ordered as `matches`.
        targets: Targets of the clips.
        matches: Their matches.
        padding_mask: bool [B, T, H, W], or None.
        config: Focal parameters.

    Returns:
        The focal loss (mean over the real pixels of a frame, summed over its real frames) and
        the dice loss (summed over the frames where the instance is visible).
    """
    wanted = _gather([target.masks for target in targets], matches).to(logits.dtype)
    valid = _gather([target.valid for target in targets], matches)
    if not len(logits):
        nothing = logits.sum()
        return nothing, nothing
    logits = F.interpolate(logits, size=wanted.shape[-2:], mode="bilinear", align_corners=False)
    focal, probability = focal_loss(logits, wanted, config), logits.sigmoid()
    if padding_mask is None:
        focal_sum = focal.mean((-2, -1)).sum()
    else:
        real = (~_gather_clips(padding_mask, matches)).to(logits.dtype)
        pixels = real.sum((-2, -1)).clamp(min=1)
        focal_sum = ((focal * real).sum((-2, -1)) / pixels).sum()
        probability = probability * real
    overlap = (probability * wanted).sum((-2, -1))
    size = probability.sum((-2, -1)) + wanted.sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return focal_sum, dice[valid].sum()


def dense_loss(logits: Tensor, batch: Batch, config: LossConfig) -> Tensor:
    """Focal loss of class maps [B, T, h, w, classes], divided by the number of covered cells."""
    classes = logits.shape[-1]
    wanted = torch.stack(
        [cell_classes(target, logits.shape[2:4], classes, config) for target in batch.targets]
    )
    loss = focal_loss(logits, wanted, config)
    if batch.padding_mask is not None:
        padding = F.interpolate(batch.padding_mask.float(), size=logits.shape[2:4], mode="nearest")
        loss = loss * (1 - padding)[..., None]
    return loss.sum() / wanted.sum().clamp(min=1)


def cell_classes(target: Targets, size: Sequence[int], classes: int, config: LossConfig) -> Tensor:
    """Which classes each cell shows.

    Returns:
        float32 [T, h, w, classes]: 1 where instances of the class cover more than
        `config.dense_share` of the cell.
    """
    frames, height, width = target.masks.shape[1:]
    shown = torch.zeros(classes, frames, height, width, device=target.masks.device)
    shown.index_add_(0, target.labels, target.masks.float())
    share = F.adaptive_avg_pool2d(shown.clamp_(max=1), (size[0], size[1]))
    return (share > config.dense_share).float().permute(1, 2, 3, 0)


def _pad_slots(matches: Sequence[Match]) -> tuple[Tensor, Tensor]:
    """Matched slots as int64 [B, J], filled up with slot 0, and bool [B, J], True on real ones."""
    slots = torch.nn.utils.rnn.pad_sequence([found.slots for found in matches], batch_first=True)
    lengths = torch.tensor([len(found.slots) for found in matches], device=slots.device)
    return slots, torch.arange(slots.shape[1], device=slots.device) < lengths[:, None]


def _gather(rows: Sequence[Tensor], matches: Sequence[Match]) -> Tensor:
    return torch.cat([row[found.instances] for row, found in zip(rows, matches, strict=True)])


def _gather_clips(per_clip: Tensor, matches: Sequence[Match]) -> Tensor:
    return torch.cat(
        [per_clip[clip].expand(len(found.slots), -1, -1, -1) for clip, found in enumerate(matches)]
    )
