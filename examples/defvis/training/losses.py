"""All losses of a step, divided by the number of visible (instance, frame) pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from defvis.config import LossConfig
from defvis.data.boxes import generalised_iou
from defvis.data.clips import Batch, Targets
from defvis.models.layers import run_layer
from defvis.models.model import Outputs
from defvis.models.seeds import TEMPERATURE
from defvis.training.matcher import Match, largest, matched_slots


def compute_losses(
    outputs: Outputs,
    masks: Tensor,
    matches: Sequence[Sequence[Match]],
    batch: Batch,
    config: LossConfig,
    whole: Batch | None = None,
) -> dict[str, Tensor]:
    """Computes the losses of a batch of clips.

    Class and box losses are taken on every decoder layer, each with its own matching; mask losses
    on the last, for matched slots only. In a frame in which a matched instance is absent, its slot
    is trained to have no class and an empty mask; padded frames and pixels do not count. A batch
    without any instance gives finite losses. All denominators are those of the whole batch of all
    processes, so the losses of its parts add up to its losses.

    Args:
        outputs: Predictions.
        masks: Mask logits of the matched slots, [B, J, T, h, w] in the order of `matched_slots`.
        matches: Result of `match`, [R][B].
        batch: The clips with their targets.
        config: Weights.
        whole: The batch that `batch` is a part of; None if it is all.

    Returns:
        Scalars: "total" (weighted sum, to be differentiated), and unweighted for the log, last
        decoder layer: "class", "l1", "giou", "mask", "dice", "dense" where the model has class
        maps, and "identity" where its queries are seeds.
    """
    targets, whole = batch.targets, whole or batch
    visible = torch.stack([target.valid.sum() for target in whole.targets]).sum()
    pairs = mean_over_ranks(visible.to(outputs.boxes.dtype)).clamp(min=1)
    no_object_weight = None
    if outputs.class_output == "softmax":
        slots = outputs.class_logits.shape[2]
        no_object_weight = mean_over_ranks(no_object_weights(whole, slots, config))
    total = outputs.boxes.new_zeros(())
    losses: dict[str, Tensor] = {}
    for layer, layer_matches in enumerate(matches):
        arguments = (outputs.class_logits[layer], targets, layer_matches, outputs.frame_mask)
        losses = {
            "class": (
                class_loss(*arguments, config) / pairs
                if no_object_weight is None
                else no_object_class_loss(*arguments, config) / no_object_weight
            ),
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
    _, present = matched_slots(matches[-1])
    masks = masks.flatten(0, 1) if present is None else masks[present]  # [P, T, h, w]
    mask, dice = mask_losses(masks, targets, matches[-1], batch.padding_mask, config)
    losses["mask"], losses["dice"] = mask / pairs, dice / pairs
    total = total + config.mask_weight * losses["mask"] + config.dice_weight * losses["dice"]
    if outputs.dense_logits is not None:
        losses["dense"] = torch.stack(
            [dense_loss(logits, batch, config, whole) for logits in outputs.dense_logits]
        ).sum()
        total = total + config.dense_weight * losses["dense"]
    if outputs.identities is not None:
        losses["identity"] = identity_loss(outputs.identities, targets) / pairs
        total = total + config.identity_weight * losses["identity"]
    return {"total": total, **{name: loss.detach() for name, loss in losses.items()}}


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean of a loss's denominator over the processes that train together.

    Their gradients are averaged; with this, that is the gradient of one batch of all clips.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


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


def no_object_class_loss(
    logits: Tensor,
    targets: Sequence[Targets],
    matches: Sequence[Match],
    frame_mask: Tensor,
    config: LossConfig,
) -> Tensor:
    """Weighted sum of the cross-entropy of logits [B, I, T, classes + 1] over real frames.

    The last class, no object, is wanted of slots without an instance and where it is absent.
    """
    nothing = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:-1], nothing, device=logits.device)
    for clip, (target, found) in enumerate(zip(targets, matches, strict=True)):
        labels = target.labels[found.instances][:, None]
        wanted[clip, found.slots] = torch.where(target.valid[found.instances], labels, nothing)
    weight = torch.where(wanted == nothing, config.no_object_weight, 1.0) * frame_mask[:, None]
    loss = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none")
    return (loss * weight.flatten()).sum()


def no_object_weights(batch: Batch, slots: int, config: LossConfig) -> Tensor:
    """The sum of the weights in `no_object_class_loss`, which no assignment changes."""
    matched = torch.stack(
        [
            (
                target.valid if len(target.valid) <= slots else target.valid[largest(target, slots)]
            ).sum()
            for target in batch.targets
        ]
    ).sum()
    clips, frames = batch.frames.shape[:2]
    real: Tensor | int = clips * frames
    if batch.padding_mask is not None:
        real = (~batch.padding_mask.flatten(2).all(-1)).sum()
    return matched + config.no_object_weight * (slots * real - matched)


def box_losses(
    boxes: Tensor, targets: Sequence[Targets], matches: Sequence[Match]
) -> dict[str, Tensor]:
    """Summed L1 and 1 - GIoU of boxes [B, I, T, 4] over visible pairs."""
    predicted = torch.cat([boxes[clip, found.slots] for clip, found in enumerate(matches)])
    wanted = _gather([target.boxes for target in targets], matches)
    valid = _gather([target.valid for target in targets], matches)
    return {
        "l1": torch.where(valid, (predicted - wanted).abs().sum(-1), 0).sum(),
        "giou": torch.where(valid, 1 - generalised_iou(predicted, wanted), 0).sum(),
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
    wanted = _gather([target.masks for target in targets], matches)
    valid = _gather([target.valid for target in targets], matches)
    padding = None if padding_mask is None else _gather_clips(padding_mask, matches)
    if not len(logits):
        nothing = logits.sum()
        return nothing, nothing
    chunk = config.mask_chunk or len(logits)
    sums = [
        run_layer(
            _mask_loss_sums,
            logits[start : start + chunk],
            wanted[start : start + chunk],
            valid[start : start + chunk],
            None if padding is None else padding[start : start + chunk],
            config,
            recompute=bool(config.mask_chunk),
        )
        for start in range(0, len(logits), chunk)
    ]
    focal, dice = torch.stack(sums).sum(0)
    return focal, dice


def _mask_loss_sums(
    logits: Tensor,  # [P, T, h, w]
    masks: Tensor,  # bool [P, T, H, W]
    valid: Tensor,  # bool [P, T]
    padding: Tensor | None,  # bool [P, T, H, W]
    config: LossConfig,
) -> Tensor:  # [2]
    wanted = masks.to(logits.dtype)
    logits = F.interpolate(logits, size=wanted.shape[-2:], mode="bilinear", align_corners=False)
    focal, probability = focal_loss(logits, wanted, config), logits.sigmoid()
    if padding is None:
        focal_sum = focal.mean((-2, -1)).sum()
    else:
        real = (~padding).to(logits.dtype)
        pixels = real.sum((-2, -1)).clamp(min=1)
        focal_sum = ((focal * real).sum((-2, -1)) / pixels).sum()
        probability = probability * real
    overlap = (probability * wanted).sum((-2, -1))
    size = probability.sum((-2, -1)) + wanted.sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return torch.stack((focal_sum, (dice * valid).sum()))


def identity_loss(embeddings: Tensor, targets: Sequence[Targets]) -> Tensor:
    """Sum over visible pairs of the contrastive loss of cell embeddings [B, T, h, w, E].

    The embedding of a pair (instance, frame) is the mean over the instance's mask.

    The supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2): an instance is to be
    like itself in other frames, and unlike the clip's other instances.
    """
    total = embeddings.sum() * 0
    for cells, target in zip(embeddings, targets, strict=True):
        share = F.adaptive_avg_pool2d(target.masks.float(), cells.shape[1:3])  # [G, T, h, w]
        means = F.normalize(torch.einsum("gthw,thwe->gte", share, cells), dim=-1).flatten(0, 1)
        instances, frames = target.valid.shape
        valid = target.valid.flatten()
        instance = torch.arange(instances, device=means.device).repeat_interleave(frames)
        others = valid & ~torch.eye(len(valid), dtype=torch.bool, device=means.device)
        same = (instance[:, None] == instance) & others & valid[:, None]
        logits = means @ means.T / TEMPERATURE
        logits = logits.masked_fill(~others, torch.finfo(logits.dtype).min)
        logs = torch.where(same, logits.log_softmax(-1), 0)
        total = total - (logs.sum(-1) / same.sum(-1).clamp(min=1)).sum()
    return total


def dense_loss(
    logits: Tensor, batch: Batch, config: LossConfig, whole: Batch | None = None
) -> Tensor:
    """Focal loss of class maps [B, T, h, w, classes], divided by the number of covered cells.

    Those of `whole` count, which `batch` is a part of.
    """
    wanted = _cell_classes(batch, logits, config)
    covered = wanted.sum() if whole is None else _cell_classes(whole, logits, config).sum()
    loss = focal_loss(logits, wanted, config)
    if batch.padding_mask is not None:
        padding = F.interpolate(batch.padding_mask.float(), size=logits.shape[2:4], mode="nearest")
        loss = loss * (1 - padding)[..., None]
    return loss.sum() / mean_over_ranks(covered).clamp(min=1)


def _cell_classes(batch: Batch, logits: Tensor, config: LossConfig) -> Tensor:
    """`cell_classes` of every clip, at the size and with the classes of `logits`."""
    size, classes = logits.shape[2:4], logits.shape[-1]
    return torch.stack([cell_classes(target, size, classes, config) for target in batch.targets])


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


def _gather(rows: Sequence[Tensor], matches: Sequence[Match]) -> Tensor:
    return torch.cat([row[found.instances] for row, found in zip(rows, matches, strict=True)])


def _gather_clips(per_clip: Tensor, matches: Sequence[Match]) -> Tensor:
    return torch.cat(
        [per_clip[clip].expand(len(found.slots), -1, -1, -1) for clip, found in enumerate(matches)]
    )
