"""Transformer decoder: one query per (slot, frame), boxes refined layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from defvis.config import ModelConfig
from defvis.heads import BoxHead, ClassHead
from defvis.layers import MLP, FeedForward, inverse_sigmoid
from defvis.position import sine_embedding
from stdeform import STDeformAttn


class ReferenceBoxes(nn.Module):
    """A learned first box per slot, the same in every frame, spread over the frame at the start."""

    def __init__(self, num_slots: int, size: tuple[float, ...]) -> None:
        super().__init__()
        columns = math.ceil(math.sqrt(num_slots * 1.5))
        rows = math.ceil(num_slots / columns)
        slot = torch.arange(num_slots)
        boxes = torch.stack(
            (
                (slot % columns + 0.5) / columns,
                (slot // columns + 0.5) / rows,
                torch.full((num_slots,), size[0]),
                torch.full((num_slots,), size[1]),
            ),
            dim=-1,
        )
        self.logits = nn.Parameter(inverse_sigmoid(boxes))

    def forward(self) -> Tensor:
        """Returns [I, 4] boxes."""
        return self.logits.sigmoid()


class DecoderLayer(nn.Module):
    """Dense attention among the queries, deformable attention to the memory, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(
            config.embed_dim, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.self_norm = nn.LayerNorm(config.embed_dim)
        self.cross_attention = STDeformAttn(
            config.embed_dim, config.num_heads, num_levels=1, num_points=config.num_points
        )
        self.cross_norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.embed_dim, config.feedforward_dim, config.dropout)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        reference_boxes: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int, int]],
        query_padding: Tensor | None,
        memory_padding: Tensor | None,
    ) -> Tensor:
        """Updates the queries.

        Args:
            queries: [B, Q, C].
            position: [B, Q, C], added to queries and keys of both attentions.
            reference_boxes: (x, y, t, w, h, d) per query, [B, Q, 6].
            memory: [B, S, C].
            spatial_shapes: [(T, H, W)].
            query_padding: bool [B, Q], True for queries of padded frames, or None.
            memory_padding: bool [B, S], True on padding, or None.

        Returns:
            [B, Q, C].
        """
        keys = queries + position
        attended, _ = self.self_attention(
            keys, keys, queries, key_padding_mask=query_padding, need_weights=False
        )
        queries = self.self_norm(queries + self.dropout(attended))
        attended = self.cross_attention(
            queries + position, reference_boxes, memory, spatial_shapes, memory_padding
        )
        out: Tensor = self.feedforward(self.cross_norm(queries + self.dropout(attended)))
        return out


class Decoder(nn.Module):
    """A stack of `DecoderLayer` with its own class and box head on every layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.references = ReferenceBoxes(config.num_slots, config.initial_box)
        self.slot_content = nn.Parameter(torch.randn(config.num_slots, width))
        self.slot_position = nn.Parameter(torch.randn(config.num_slots, width))
        self.time_position = nn.Linear(width, width)
        self.box_position = MLP(4, width, width)
        layers = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(
            ClassHead(width, config.num_classes) for _ in range(config.decoder_layers)
        )
        self.box_heads = nn.ModuleList(BoxHead(width) for _ in range(config.decoder_layers))
        # An offset o moves a point by o / K * box / 2. Boxes are handed to the attention larger
        # by these factors, so that at the start the outermost points of the pattern lie on the
        # edge of the slot's box, and an offset of 1 in t is one frame (after division by T).
        bias = layers[0].cross_attention.sampling_offsets.bias.detach()
        reach = float(bias.unflatten(0, (-1, 3))[:, :2].abs().max())
        self._box_scale = config.num_points / reach
        self._frame_scale = 2.0 * config.num_points

    def forward(
        self,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int, int]],
        memory_padding: Tensor | None,
        valid_ratios: Tensor,
        frame_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes the slots.

        The reference of a query is the box its slot has in its frame so far: (x, y, w, h) is
        predicted by the layer before and detached, t is the frame's own and stays. Sampling
        offsets scale with the box in x and y and are in frames in t.

        Args:
            memory: [B, S, C].
            spatial_shapes: [(T, H, W)].
            memory_padding: bool [B, S], True on padding, or None.
            valid_ratios: Real share of the padded volume, (x, y, t), [B, 3].
            frame_mask: bool [B, T], True on real frames.

        Returns:
            class logits [R, B, I, T, num_classes] and boxes [R, B, I, T, 4] of the R layers, and
            the queries of the last layer [B, I, T, C].
        """
        batch, frames = frame_mask.shape
        slots, width = self.slot_content.shape
        content = self.slot_content[None, :, None].expand(batch, slots, frames, width)
        slot_time = self.slot_position[None, :, None] + self._time(frame_mask, width)[:, None]
        boxes = self.references()[None, :, None].expand(batch, slots, frames, 4)
        query_padding = (
            None
            if memory_padding is None
            else (~frame_mask)[:, None].expand(batch, slots, frames).flatten(1)
        )

        queries = content.flatten(1, 2)
        all_logits, all_boxes = [], []
        for layer, class_head, box_head in zip(
            self.layers, self.class_heads, self.box_heads, strict=True
        ):
            position = (slot_time + self.box_position(boxes)).flatten(1, 2)
            queries = layer(
                queries,
                position,
                self._volume_boxes(boxes, valid_ratios).flatten(1, 2),
                memory,
                spatial_shapes,
                query_padding,
                memory_padding,
            )
            grid = queries.unflatten(1, (slots, frames))
            all_logits.append(class_head(grid, frame_mask))
            all_boxes.append(box_head(grid, boxes))
            boxes = all_boxes[-1].detach()
        return torch.stack(all_logits), torch.stack(all_boxes), grid

    def _time(self, frame_mask: Tensor, width: int) -> Tensor:
        """Position of each frame within the real part of its clip, [B, T, C]."""
        real = frame_mask.float()
        fraction = (real.cumsum(1) - 0.5) / real.sum(1, keepdim=True).clamp(min=1)
        encoded: Tensor = self.time_position(sine_embedding(fraction, width))
        return encoded

    def _volume_boxes(self, boxes: Tensor, valid_ratios: Tensor) -> Tensor:
        """Boxes [B, I, T, 4] in the frame to (x, y, t, w, h, d) in the padded volume, scaled."""
        frames = boxes.shape[2]
        x_y = valid_ratios[:, None, None, :2]
        t = (torch.arange(frames, device=boxes.device, dtype=boxes.dtype) + 0.5) / frames
        t = t.expand(boxes.shape[:3])[..., None]
        size = boxes[..., 2:] * x_y * self._box_scale
        depth = torch.full_like(t, self._frame_scale / frames)
        return torch.cat((boxes[..., :2] * x_y, t, size, depth), dim=-1)
