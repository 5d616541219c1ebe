"""Queries that start at objects: a cell of the clip for each slot, found again in every frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defvis.config import ModelConfig
from defvis.models.attention import Volume
from defvis.models.layers import inverse_sigmoid
from defvis.models.queries import BoxQueries

# Two cells are of different objects up to the first cosine of their embeddings, and of one object
# from the second on. With .3 and .7, chosen without trials, objects of one kind hid each other.
_DIFFERENT, _SAME = 0.5, 0.9
# Divides cosines before a softmax; the identity loss takes the same.
TEMPERATURE = 0.1
# Times that slots share the cells at inference, see `_share`. One is worse; six were no better.
_ROUNDS = 4
# Objectness that counts at least; and what is left of it where a cell is like a seed: with fewer
# objects than slots, some cell must be taken.
_LEAST = 1e-3
# Logarithms of objectness are rounded to steps of this, and the first of equal cells is taken:
# else a difference that is rounding alone would give other seeds on every machine and runtime.
_STEP = 1 / 64


@dataclass(frozen=True)
class CellMaps:
    """What seeds are chosen by.

    Attributes:
        embedding: Of length 1, alike for cells of one object in all frames, [B, T, h, w, E].
        objectness: Highest class probability, [B, T, h, w].
    """

    embedding: Tensor
    objectness: Tensor


class SeedQueries(BoxQueries):
    """Queries made of what their seed and its likeness in their frame look like.

    Seeds are taken one by one: the cell that most probably shows an object and is least like the
    seeds before. In each frame the query starts at the mean place of the cells that are like its
    seed. So a slot begins as one object wherever that moves, and not as a place in the frame.

    At inference the slots first share the cells of all frames among themselves, see `_share`. A
    model that was trained with that found less.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self._slots = config.num_slots
        self.seed_content = nn.Linear(width, width)
        self.frame_content = nn.Linear(width, width)
        self.size = nn.Linear(width, 2)
        nn.init.zeros_(self.size.weight)
        with torch.no_grad():
            self.size.bias.copy_(inverse_sigmoid(torch.tensor(config.initial_box)))
        self.add_position_layers(width)

    def forward(
        self, volume: Volume, memory: Tensor, maps: CellMaps
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Starts the queries of a batch.

        Args:
            volume: Positions and padding of the cells.
            memory: Their features, [B, S, C]. Those of the finest level are used.
            maps: What the seeds are chosen by.

        Returns:
            Content and the part of the position that stays, [B, I, T, C] each, and reference
            boxes [B, I, T, 4].
        """
        frames, height, width = volume.shape
        cells = memory[:, : frames * height * width]
        prior = maps.objectness.detach().flatten(1).clamp(min=_LEAST).log()  # [B, T * h * w]
        if volume.padding_mask is not None:
            padding = volume.padding_mask[:, : prior.shape[1]]
            prior = prior.masked_fill(padding, torch.finfo(prior.dtype).min)
        embedding = maps.embedding.flatten(1, 3)  # [B, T * h * w, E]
        index = _pick(embedding.detach(), prior, self._slots)[..., None]  # [B, I, 1]
        seeds = cells.gather(1, index.expand(-1, -1, cells.shape[-1]))
        own = embedding.gather(1, index.expand(-1, -1, embedding.shape[-1]))

        if self.training:
            logits = _likeness(own, embedding) + prior[:, None]
        else:
            logits = _share(own, embedding, prior, frames)
        weight = _in_frames(logits, frames)  # [B, I, T, h * w]
        centres = (weight[..., None] * _centres(height, width, weight)).sum(-2)
        centres = centres / volume.valid_ratios[:, :1, None, :2]
        cells = cells.unflatten(1, (frames, height * width))
        seen = (weight.to(cells.dtype).transpose(1, 2) @ cells).transpose(1, 2)  # [B, I, T, C]

        content = self.seed_content(seeds)[:, :, None] + self.frame_content(seen)
        sizes = self.size(seeds).float().sigmoid()[:, :, None].expand_as(centres)
        fixed = self.time(volume.frame_mask)[:, None].expand_as(content)
        return content, fixed, torch.cat((centres, sizes), dim=-1)


def _pick(embedding: Tensor, prior: Tensor, count: int) -> Tensor:
    """Indices of the seeds, [B, I]: each the likeliest object of those unlike the seeds before.

    A cell is taken twice only if there are fewer real cells than slots. Slots of one cell would
    stay equal: nothing else tells them apart.

    Args:
        embedding: [B, S, E].
        prior: Logarithm of the objectness, the least number on padding, [B, S].
        count: Number of slots I.
    """
    picks = []
    for _ in range(count):
        pick = (prior / _STEP).round().argmax(1)
        picks.append(pick)
        seed = embedding.gather(1, pick[:, None, None].expand(-1, 1, embedding.shape[-1]))
        alike = (embedding * seed).sum(-1)
        other = 1 - (alike - _DIFFERENT) / (_SAME - _DIFFERENT)
        prior = prior + other.clamp(_LEAST, 1.0).log()
        prior = prior.scatter(1, pick[:, None], torch.finfo(prior.dtype).min)
    return torch.stack(picks, dim=1)


def _share(own: Tensor, embedding: Tensor, prior: Tensor, frames: int) -> Tensor:
    """Logits of the cells in which to look for each slot's object, [B, I, S].

    As in slot attention (Locatello et al., NeurIPS 2020, algorithm 1) slots compete for cells: a
    cell is split among the slots by likeness, and each slot's embedding becomes the mean of its
    cells. So it shows the object from more sides than the seed did, and of two objects of a kind
    each slot keeps its own. Different from there: nothing is learned, a slot looks at the few
    cells of every frame that are most like it (likeness) and unlike the other slots (part), and a
    cell counts as far as it shows an object.

    Args:
        own: Embeddings of the seeds, [B, I, E].
        embedding: Of the cells, [B, S, E].
        prior: Logarithm of the objectness, the least number on padding, [B, S].
        frames: T, with S / T cells each.
    """
    for _ in range(_ROUNDS):
        likeness = _likeness(own, embedding)
        claim = _log_parts(likeness) + prior[:, None]
        weight = _in_frames(likeness + claim, frames).flatten(2) * claim.exp()
        own = F.normalize((weight[..., None] * embedding[:, None]).sum(2), dim=-1)
    likeness = _likeness(own, embedding)
    return likeness + _log_parts(likeness) + prior[:, None]


def _likeness(own: Tensor, embedding: Tensor) -> Tensor:
    """Cosines over the temperature, [B, I, S]; as sums, for autocast would round products."""
    return (own[:, :, None] * embedding[:, None]).sum(-1) / TEMPERATURE


def _log_parts(likeness: Tensor) -> Tensor:
    """Logarithm of each slot's part of each cell, [B, I, S].

    One more slot that has a cosine of `_DIFFERENT` to every cell takes what is unlike the others.
    """
    with_none = F.pad(likeness, (0, 0, 0, 1), value=_DIFFERENT / TEMPERATURE)
    return likeness - with_none.logsumexp(dim=1, keepdim=True)


def _in_frames(logits: Tensor, frames: int) -> Tensor:
    """Softmax over the cells of each frame, [B, I, T, S / T], of logits [B, I, S]."""
    weight: Tensor = logits.unflatten(-1, (frames, -1)).softmax(-1)
    return weight


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """Centres (x, y) of a frame's cells as fractions of it, [h * w, 2]."""
    y, x = (
        (torch.arange(cells, dtype=like.dtype, device=like.device) + 0.5) / cells
        for cells in (height, width)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def identity_embedding(project: nn.Module, cells: Tensor) -> Tensor:
    """Embeddings of length 1, in float32, of cells [..., C]."""
    return F.normalize(project(cells).float(), dim=-1)
