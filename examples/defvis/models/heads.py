"""Heads on decoder queries (class, box) and on feature cells (dense class map)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from defvis.config import ModelConfig
from defvis.models.layers import MLP, inverse_sigmoid, start_at_probability_


class ClassHead(nn.Module):
    """Class logits of a (slot, frame): from its own query plus, if pooled, the slot's mean.

    The mean over the frames has the evidence of the whole sequence about the class; the query
    itself shows whether the object is visible in this frame.
    """

    def __init__(self, config: ModelConfig, prior: float = 0.05) -> None:
        super().__init__()
        sigmoid = config.class_output == "sigmoid"
        outputs = config.num_classes + (0 if sigmoid else 1)
        self.frame = nn.Linear(config.embed_dim, outputs)
        self.sequence = (
            nn.Linear(config.embed_dim, outputs, bias=False) if config.class_pooling else None
        )
        if sigmoid:
            start_at_probability_(self.frame, prior)

    def forward(self, queries: Tensor, frame_mask: Tensor) -> Tensor:
        """Computes logits.

        Args:
            queries: [B, I, T, C].
            frame_mask: bool [B, T], True on real frames.

        Returns:
            [B, I, T, num_classes], or one more with softmax: the last is no object.
        """
        if self.sequence is None:
            alone: Tensor = self.frame(queries)
            return alone
        weight = frame_mask[:, None, :, None].to(queries.dtype)
        mean = (queries * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp(min=1)
        pooled: Tensor = self.frame(queries) + self.sequence(mean)
        return pooled


def class_probabilities(logits: Tensor, class_output: str) -> Tensor:
    """Probabilities of the classes proper, [..., num_classes], from a `ClassHead`'s logits."""
    if class_output == "sigmoid":
        return logits.sigmoid()
    return logits.softmax(-1)[..., :-1]


Reference = Literal["box", "point", "nothing"]


class BoxHead(nn.Module):
    """Predicts a box relative to a reference: sigmoid(MLP(query) + inverse sigmoid(reference)).

    Args:
        embed_dim: Channels of the queries.
        reference: What the boxes are relative to. From a "box" the last layer starts at zero, so
            that the first prediction is the reference itself. A "point" gives the centre only;
            the size starts at sigmoid(-2) of the frame (Deformable DETR). From "nothing" the
            layer starts as PyTorch's do.
    """

    def __init__(self, embed_dim: int, reference: Reference) -> None:
        super().__init__()
        last = nn.Linear(embed_dim, 4)
        if reference != "nothing":
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if reference == "point":
            nn.init.constant_(last.bias[2:], -2.0)
        self.delta = nn.Sequential(MLP(embed_dim, embed_dim, embed_dim), nn.ReLU(), last)

    def forward(self, queries: Tensor, references: Tensor | None) -> Tensor:
        """Maps queries [B, I, T, C] to boxes [B, I, T, 4].

        Args:
            queries: [B, I, T, C].
            references: Boxes [B, I, T, 4], points [B, I, T, 2], or None.
        """
        moved: Tensor = self.delta(queries).float()  # half would round boxes to 1 / 256
        if references is not None:
            anchor = inverse_sigmoid(references)
            moved = moved + F.pad(anchor, (0, 4 - anchor.shape[-1]))
        return moved.sigmoid()


class DenseClassHead(nn.Module):
    """Class logits of every feature cell: an auxiliary loss for backbone and encoder."""

    def __init__(self, embed_dim: int, num_classes: int, prior: float = 0.05) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, num_classes)
        start_at_probability_(self.project, prior)

    def forward(self, cells: Tensor) -> Tensor:
        """Maps cells [..., C] to logits [..., num_classes]."""
        logits: Tensor = self.project(cells)
        return logits
