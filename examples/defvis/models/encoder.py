"""Transformer encoder: self-attention over all cells of all frames."""

from __future__ import annotations

from torch import Tensor, nn

from defvis.config import ModelConfig
from defvis.models.attention import ATTENTIONS, Volume
from defvis.models.layers import FeedForward, run_layer, xavier_
from stdeform import shapes


class EncoderLayer(nn.Module):
    """One post-norm layer; every cell is a query with itself as the reference point."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = ATTENTIONS[config.encoder_attention](config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.feedforward = FeedForward(config.embed_dim, config.feedforward_dim, config.dropout)

    def forward(self, memory: Tensor, references: Tensor, volume: Volume) -> Tensor:
        """Updates the cells [B, S, C]; references are points (x, y, t), [B or 1, S, L, 3]."""
        attended = self.attention(memory + volume.position, references, memory, volume)
        out: Tensor = self.feedforward(self.norm(memory + self.dropout(attended)))
        return out


class Encoder(nn.Module):
    """A stack of `EncoderLayer`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self._recompute = config.checkpointing
        if config.initialisation == "xavier":
            xavier_(self.layers)

    def forward(self, memory: Tensor, volume: Volume) -> Tensor:
        """Lets every cell attend to cells of the whole clip.

        Args:
            memory: Projected backbone features, [B, S, C].
            volume: Positions of the cells; their position encoding is added to queries and keys.

        Returns:
            [B, S, C].
        """
        ratios = None if volume.padding_mask is None else volume.valid_ratios
        references = shapes.reference_grid(volume.shapes, ratios, device=memory.device)
        for layer in self.layers:
            memory = run_layer(layer, memory, references, volume, recompute=self._recompute)
        return memory
