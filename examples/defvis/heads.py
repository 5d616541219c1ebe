"""Heads on decoder queries (class, box) and on feature cells (dense class map)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from defvis.layers import MLP, inverse_sigmoid


class ClassHead(nn.Module):
    """Class logits of a (slot, frame): from its own query plus from the slot's mean over frames.

    The mean carries what the whole sequence says about the object, the query itself whether it
    is visible in this frame.
    """

    def __init__(self, embed_dim: int, num_classes: int, prior: float = 0.05) -> None:
        super().__init__()
        self.frame = nn.Linear(embed_dim, num_classes)
        self.sequence = nn.Linear(embed_dim, num_classes, bias=False)
        nn.init.constant_(self.frame.bias, -math.log((1 - prior) / prior))

    def forward(self, queries: Tensor, frame_mask: Tensor) -> Tensor:
        """Computes logits.

        Args:
            queries: [B, I, T, C].
            frame_mask: bool [B, T], True on real frames.

        Returns:
            [B, I, T, num_classes].
        """
        weight = frame_mask[:, None, :, None].to(queries.dtype)
        mean = (queries * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp(min=1)
        logits: Tensor = self.frame(queries) + self.sequence(mean)
        return logits


class BoxHead(nn.Module):
    """Moves a reference box: sigmoid(MLP(query) + inverse sigmoid(reference)).

    The last layer starts at zero, so that the first prediction is the reference itself.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        last = nn.Linear(embed_dim, 4)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.delta = nn.Sequential(MLP(embed_dim, embed_dim, embed_dim), nn.ReLU(), last)

    def forward(self, queries: Tensor, reference_boxes: Tensor) -> Tensor:
        """Maps queries [B, I, T, C] and boxes [B, I, T, 4] to boxes [B, I, T, 4]."""
        moved: Tensor = self.delta(queries) + inverse_sigmoid(reference_boxes)
        return moved.sigmoid()


class DenseClassHead(nn.Module):
    """Class logits of every feature cell; trains the backbone, and the encoder beside the rest."""

    def __init__(self, embed_dim: int, num_classes: int, prior: float = 0.05) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, num_classes)
        nn.init.constant_(self.project.bias, -math.log((1 - prior) / prior))

    def forward(self, cells: Tensor) -> Tensor:
        """Maps cells [..., C] to logits [..., num_classes]."""
        logits: Tensor = self.project(cells)
        return logits
