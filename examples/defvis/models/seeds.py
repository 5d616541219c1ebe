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

# Cosines of the embeddings of two cells: up to the first they are of different objects, from the
# second on of one. With .3 and .7, chosen without trials, objects of one kind hid each other.
_DIFFERENT, _SAME = 0.5, 0.9
# Divides cosines before a softmax; the identity loss takes the same.
TEMPERATURE = 0.1
# Times that the slots share the cells out anew, at inference.
_ROUNDS = 2
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

    At inference the slots first share the cells of all frames among themselves, see `_share`.
    Trained with that, a model was worse at inference: in training it helps to start worse.
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

        alike = _likeness(own, embedding) if self.training else _share(own, embedding, prior)
        logits = alike + prior[:, None]
        weight = logits.unflatten(-1, (frames, height * width)).softmax(-1)  # [B, I, T, h * w]
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


def _share(own: Tensor, embedding: Tensor, prior: Tensor) -> Tensor:
    """How much cells are like a slot and unlike all other slots, as logits [B, I, S].

    Soft clustering of directions that starts at the seeds (Banerjee et al., "Clustering on the
    Unit Hypersphere using von Mises-Fisher Distributions", JMLR 2005, "soft-moVMF" with equal
    shares and the concentration 1 / TEMPERATURE): cells are shared out among the slots by their
    likeness, and a slot becomes the mean of its cells. So it knows its object from all sides, and
    of two objects of a kind each slot keeps its own. What is of a different object than all slots
    goes to none of them.

    Args:
        own: Embeddings of the seeds, [B, I, E].
        embedding: Of the cells, [B, S, E].
        prior: Logarithm of the objectness, [B, S].
    """
    objects = prior.exp()[:, None]
    for _ in range(_ROUNDS):
        shares = _log_shares(_likeness(own, embedding)).exp() * objects
        own = F.normalize((shares[..., None] * embedding[:, None]).sum(2), dim=-1)
    alike = _likeness(own, embedding)
    return alike + _log_shares(alike)


def _likeness(own: Tensor, embedding: Tensor) -> Tensor:
    # Sums of products, here and above: autocast would round a matrix product.
    return (own[:, :, None] * embedding[:, None]).sum(-1) / TEMPERATURE


def _log_shares(alike: Tensor) -> Tensor:
    """Of each slot in each cell, [B, I, S]; the shares of a cell add up to less than 1."""
    return alike - F.pad(alike, (0, 0, 0, 1), value=_DIFFERENT / TEMPERATURE).logsumexp(1, True)


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
