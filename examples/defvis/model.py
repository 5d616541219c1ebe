"""The network: backbone, projection, encoder, decoder, mask head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defvis.backbone import Backbone
from defvis.config import ModelConfig
from defvis.decoder import Decoder
from defvis.encoder import Encoder
from defvis.heads import DenseClassHead
from defvis.mask_head import DynamicMaskHead, MaskFeatures
from defvis.position import sine_position_3d
from stdeform import shapes


@dataclass(frozen=True)
class Outputs:
    """What the network says about a batch of clips.

    Attributes:
        class_logits: [R, B, I, T, num_classes] of the R decoder layers.
        boxes: [R, B, I, T, 4] in fractions of the unpadded frame.
        queries: Last layer, [B, I, T, C].
        mask_features: [B, T, mask_dim, h, w].
        dense_logits: Class maps of backbone and encoder cells, [2, B, T, h8, w8, num_classes].
        frame_mask: bool [B, T], True on real frames.
        frame_ratios: Real share (x, y) of the padded frame, [B, 2].
    """

    class_logits: Tensor
    boxes: Tensor
    queries: Tensor
    mask_features: Tensor
    dense_logits: Tensor
    frame_mask: Tensor
    frame_ratios: Tensor


class DefVIS(nn.Module):
    """Deformable VisTR with a dynamic mask head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.project = nn.Sequential(
            nn.Conv2d(self.backbone.channels[-1], width, 1), nn.GroupNorm(8, width)
        )
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.mask_features = MaskFeatures(config, self.backbone.channels[:-1])
        self.mask_head = DynamicMaskHead(config)
        self.backbone_classes = DenseClassHead(width, config.num_classes)
        self.memory_classes = DenseClassHead(width, config.num_classes)

    def forward(self, frames: Tensor, padding_mask: Tensor | None = None) -> Outputs:
        """Runs everything but the masks, which `predict_masks` computes for chosen slots.

        Args:
            frames: Normalised pixels, zero on padding, [B, T, 3, H, W].
            padding_mask: bool [B, T, H, W], True on padding; only whole frames at the end and
                bands at the right and the bottom may be padded. None says there is none.
        """
        batch, num_frames = frames.shape[:2]
        maps, cells = self._features(frames.flatten(0, 1))
        height, width = cells.shape[-2:]
        spatial_shapes = [(num_frames, height, width)]
        cells = cells.unflatten(0, (batch, num_frames)).permute(0, 1, 3, 4, 2)  # [B, T, h, w, C]

        cell_padding = _resize_padding(padding_mask, cells.shape[:4], cells.device)
        memory_padding = None if padding_mask is None else cell_padding.flatten(1)
        ratios = shapes.valid_ratios(cell_padding)
        position = sine_position_3d(cell_padding, self.config.embed_dim)
        memory = self.encoder(
            cells.flatten(1, 3),
            position.flatten(2).transpose(1, 2),
            shapes.reference_grid(spatial_shapes, ratios, device=cells.device),
            spatial_shapes,
            memory_padding,
        )
        frame_mask = ~cell_padding.flatten(2).all(-1)
        class_logits, boxes, queries = self.decoder(
            memory, spatial_shapes, memory_padding, ratios, frame_mask
        )
        memory_cells = memory.view_as(cells)
        features = self.mask_features(
            memory_cells.flatten(0, 1).permute(0, 3, 1, 2), maps[:-1], frames.flatten(0, 1)
        )
        return Outputs(
            class_logits=class_logits,
            boxes=boxes,
            queries=queries,
            mask_features=features.unflatten(0, (batch, num_frames)),
            dense_logits=torch.stack(
                (self.backbone_classes(cells), self.memory_classes(memory_cells))
            ),
            frame_mask=frame_mask,
            frame_ratios=ratios[:, :2],
        )

    def predict_masks(self, outputs: Outputs, slots: Tensor) -> Tensor:
        """Mask logits of the padded frames at half their size.

        Args:
            outputs: Result of `forward`.
            slots: int64 [B, J], the slots wanted of each clip.

        Returns:
            [B, J, T, h, w].
        """
        batch = torch.arange(slots.shape[0], device=slots.device)[:, None]
        # The boxes only place the coordinate frame: mask losses must not move them.
        boxes = outputs.boxes[-1].detach()[batch, slots]
        boxes = boxes * outputs.frame_ratios.repeat(1, 2)[:, None, None]
        masks: Tensor = self.mask_head(outputs.mask_features, outputs.queries[batch, slots], boxes)
        return masks

    def classify_frames(self, frames: Tensor) -> Tensor:
        """Class logits of the backbone's cells alone: frames [N, 3, H, W] to [N, h, w, classes]."""
        _, cells = self._features(frames)
        logits: Tensor = self.backbone_classes(cells.permute(0, 2, 3, 1))
        return logits

    def _features(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        """Backbone maps of [N, 3, H, W], and the coarsest projected to [N, C, h, w]."""
        maps = self.backbone(frames)
        return maps, self.project(maps[-1])


def _resize_padding(
    padding_mask: Tensor | None, cells: Sequence[int], device: torch.device
) -> Tensor:
    """Padding of the feature cells, bool [B, T, h, w]; a cell is real if its nearest pixel is."""
    if padding_mask is None:
        return torch.zeros(tuple(cells), dtype=torch.bool, device=device)
    return F.interpolate(padding_mask.float(), size=tuple(cells[2:]), mode="nearest").bool()
