"""The decoder's queries, one per (slot, frame): their start values and first references."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from defvis.config import ModelConfig
from defvis.models.layers import MLP, inverse_sigmoid
from defvis.models.position_encoding import sine_embedding


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


class ReferencePoints(nn.Module):
    """The first reference of a query, (x, y) = sigmoid(Linear(position)), as in Deformable DETR."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, 2)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, position: Tensor) -> Tensor:
        """Maps [..., C] to [..., 2]."""
        points: Tensor = self.project(position)
        return points.sigmoid()


class BoxQueries(nn.Module):
    """Queries whose position is made of their frame's time and their box: no weight per frame."""

    def add_position_layers(self, width: int) -> None:
        """Adds the layers; last, as checkpoints know weights by their order."""
        self.time_position = nn.Linear(width, width)
        self.box_position = MLP(4, width, width)

    def time(self, frame_mask: Tensor) -> Tensor:
        """The part of the position that all slots share, [B, T, C], by the real frames [B, T]."""
        width = self.time_position.in_features
        position: Tensor = self.time_position(sine_embedding(_elapsed(frame_mask), width))
        return position

    def position(self, fixed: Tensor, references: Tensor | None) -> Tensor:
        """The position of the queries while they refer to the given boxes."""
        assert references is not None
        moved: Tensor = fixed + self.box_position(references)
        return moved


class SlotQueries(BoxQueries):
    """Queries that differ by a learned content, position and first box of their slot."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.references = ReferenceBoxes(config.num_slots, config.initial_box)
        self.slot_content = nn.Parameter(torch.randn(config.num_slots, width))
        self.slot_position = nn.Parameter(torch.randn(config.num_slots, width))
        self.add_position_layers(width)

    def forward(self, frame_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Starts the queries of a batch.

        Args:
            frame_mask: bool [B, T], True on real frames.

        Returns:
            Content and the part of the position that stays, [B, I, T, C] each, and reference
            boxes [B, I, T, 4].
        """
        batch, frames = frame_mask.shape
        slots, width = self.slot_content.shape
        content = self.slot_content[None, :, None].expand(batch, slots, frames, width)
        boxes = self.references()[None, :, None].expand(batch, slots, frames, 4)
        fixed = self.slot_position[None, :, None] + self.time(frame_mask)[:, None]
        return content, fixed, boxes


class FreeQueries(nn.Module):
    """One learned position per (slot, frame), not shared between frames (VisTR).

    A clip of another length than `num_frames` gets the positions interpolated over its real frames.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (config.num_slots, config.num_frames, config.embed_dim)
        self.table = nn.Parameter(torch.randn(shape))
        self.points = (
            None if config.decoder_attention == "dense" else ReferencePoints(config.embed_dim)
        )

    def forward(self, frame_mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `SlotQueries`, but content starts at zero and references are points [B, I, T, 2].

        With dense attention there are no references: every query sees everything.
        """
        last = self.table.shape[1] - 1
        place = (_elapsed(frame_mask) * (last + 1) - 0.5).clamp(0, last)  # [B, T]
        lower = place.floor().long()
        weight = (place - lower)[None, ..., None]
        upper = (lower + 1).clamp(max=last)
        position = torch.lerp(self.table[:, lower], self.table[:, upper], weight).transpose(0, 1)
        points = None if self.points is None else self.points(position)
        return torch.zeros_like(position), position, points

    def position(self, fixed: Tensor, references: Tensor | None) -> Tensor:
        """The position of the queries: what it was at the start."""
        return fixed


def _elapsed(frame_mask: Tensor) -> Tensor:
    """The middle of each frame as a fraction of its clip's real frames, [B, T]."""
    real = frame_mask.float()
    return (real.cumsum(1) - 0.5) / real.sum(1, keepdim=True).clamp(min=1)
