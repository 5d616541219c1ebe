"""Transformer encoder: deformable self-attention over all cells of all frames."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from defvis.config import ModelConfig
from defvis.layers import FeedForward
from stdeform import STDeformAttn


class EncoderLayer(nn.Module):
    """One post-norm layer; every cell is a query whose reference point is the cell itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = STDeformAttn(
            config.embed_dim, config.num_heads, num_levels=1, num_points=config.num_points
        )
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.feedforward = FeedForward(config.embed_dim, config.feedforward_dim, config.dropout)

    def forward(
        self,
        memory: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Args as in `Encoder`."""
        attended = self.attention(
            memory + position, reference_points, memory, spatial_shapes, padding_mask
        )
        out: Tensor = self.feedforward(self.norm(memory + self.dropout(attended)))
        return out


class Encoder(nn.Module):
    """A stack of `EncoderLayer`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self,
        memory: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Lets every cell look at K points per head of the whole clip.

        Args:
            memory: Projected backbone features, [B, S, C] with S = T * H * W.
            position: Position encoding, [B, S, C]; added to the queries only.
            reference_points: Cell centres (x, y, t) in fractions, [B or 1, S, 1, 3].
            spatial_shapes: [(T, H, W)].
            padding_mask: bool [B, S], True on padding, or None.

        Returns:
            [B, S, C].
        """
        reference_points = reference_points.expand(memory.shape[0], -1, -1, -1)
        for layer in self.layers:
            memory = layer(memory, position, reference_points, spatial_shapes, padding_mask)
        return memory
