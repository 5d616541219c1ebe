"""Transformer decoder: one query per (slot, frame), boxes refined layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defvis.config import ModelConfig
from defvis.models.attention import ATTENTIONS, Volume
from defvis.models.heads import BoxHead, ClassHead, Reference
from defvis.models.layers import FeedForward, run_layer, xavier_
from defvis.models.queries import FreeQueries, SlotQueries
from defvis.models.seeds import CellMaps, SeedQueries


class DecoderLayer(nn.Module):
    """Dense attention among the queries, attention to the memory, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(
            config.embed_dim, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.self_norm = nn.LayerNorm(config.embed_dim)
        self.cross_attention = ATTENTIONS[config.decoder_attention](config)
        self.cross_norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.embed_dim, config.feedforward_dim, config.dropout)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        references: Tensor | None,
        memory: Tensor,
        volume: Volume,
        query_padding: Tensor | None,
    ) -> Tensor:
        """Updates the queries.

        Args:
            queries: [B, Q, C].
            position: [B, Q, C], added to queries and keys of both attentions.
            references: Points or boxes, as in `DeformableAttention`.
            memory: [B, S, C].
            volume: Positions of its cells.
            query_padding: bool [B, Q], True for queries of padded frames, or None.

        Returns:
            [B, Q, C].
        """
        keys = queries + position
        attended, _ = self.self_attention(
            keys, keys, queries, key_padding_mask=query_padding, need_weights=False
        )
        queries = self.self_norm(queries + self.dropout(attended))
        attended = self.cross_attention(queries + position, references, memory, volume)
        out: Tensor = self.feedforward(self.cross_norm(queries + self.dropout(attended)))
        return out


class Decoder(nn.Module):
    """A stack of `DecoderLayer` with a class and a box head on every layer.

    Raises:
        ValueError: If layers that share a box head are to refine each other's boxes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.shared_heads and config.refine_boxes:
            raise ValueError("refine_boxes needs a box head per layer, so not shared_heads")
        width = config.embed_dim
        self.queries = _QUERIES[config.queries](config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width) if config.decoder_norm else nn.Identity()
        heads = 1 if config.shared_heads else config.decoder_layers
        self.class_heads = nn.ModuleList(ClassHead(config) for _ in range(heads))
        first: Reference = "box"
        if config.queries == "free":
            first = "nothing" if config.decoder_attention == "dense" else "point"
        self.box_heads = nn.ModuleList(
            BoxHead(width, "box" if layer and config.refine_boxes else first)
            for layer in range(heads)
        )
        self._refine = config.refine_boxes
        self._recompute = config.checkpointing
        if config.initialisation == "xavier":
            xavier_(self.layers)

    def forward(
        self, memory: Tensor, volume: Volume, maps: CellMaps | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes the slots.

        The reference of a query is in its own frame: t stays, and (x, y) or the box is where
        the query started or, if boxes are refined, what the layer before predicted, detached.

        Args:
            memory: [B, S, C].
            volume: Positions of its cells.
            maps: What seeds are chosen by; for queries "seeds".

        Returns:
            class logits [R, B, I, T, classes] and boxes [R, B, I, T, 4] of the R layers, and the
            queries of the last layer [B, I, T, C].
        """
        if isinstance(self.queries, SeedQueries):
            content, fixed, references = self.queries(volume, memory, maps)
        else:
            content, fixed, references = self.queries(volume.frame_mask)
        slots, frames = content.shape[1:3]
        query_padding = None
        if volume.padding_mask is not None:
            query_padding = (~volume.frame_mask)[:, None].expand(-1, slots, -1).flatten(1)

        queries = content.flatten(1, 2)
        all_logits, all_boxes = [], []
        for number, layer in enumerate(self.layers):
            queries = run_layer(
                layer,
                queries,
                self.queries.position(fixed, references).flatten(1, 2),
                None if references is None else _in_volume(references, volume).flatten(1, 2),
                memory,
                volume,
                query_padding,
                recompute=self._recompute,
            )
            grid = self.norm(queries).unflatten(1, (slots, frames))
            head = number % len(self.class_heads)
            all_logits.append(self.class_heads[head](grid, volume.frame_mask).float())
            all_boxes.append(self.box_heads[head](grid, references))
            if self._refine:
                references = all_boxes[-1].detach()
        return torch.stack(all_logits), torch.stack(all_boxes), grid


_QUERIES: dict[str, type[SlotQueries | SeedQueries | FreeQueries]] = {
    "slots": SlotQueries,
    "seeds": SeedQueries,
    "free": FreeQueries,
}


def _in_volume(references: Tensor, volume: Volume) -> Tensor:
    """Points or boxes of frames, [B, I, T, 2 or 4], as (x, y, t) or (x, y, t, w, h) of each level.

    The first are fractions of the real part of their frame, the second, [B, I, T, L, 3 or 5], of
    the padded volume.
    """
    frames = references.shape[2]
    x_y = volume.valid_ratios[:, None, None, :, :2]
    t = (torch.arange(frames, device=references.device, dtype=references.dtype) + 0.5) / frames
    t = t[:, None, None].expand(*references.shape[:3], x_y.shape[-2], 1)
    centre, size = references[..., None, :2] * x_y, references[..., None, 2:]
    return torch.cat((centre, t, size * x_y[..., : size.shape[-1]]), dim=-1)
