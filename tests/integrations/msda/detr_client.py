"""A small two-stage Deformable DETR, written against the API of the extension alone.

It imports `MultiScaleDeformableAttention` where it is called, has an `autograd.Function` of its own
around the two functions, and a layer, encoder and decoder of its own. Shapes and starts of levels
are tensors; reference boxes are refined from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, HEADS, POINTS, LAYERS = 32, 4, 2, 6

# (value, shapes, starts, locations, weights, im2col_step) -> [B, Q, C]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


class ExtensionFunction(torch.autograd.Function):
    """What every client of the extension writes around it."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        import MultiScaleDeformableAttention as MSDA  # type: ignore[import-not-found]

        *tensors, ctx.step = args
        ctx.save_for_backward(*tensors)
        out: Tensor = MSDA.ms_deform_attn_forward(*tensors, ctx.step)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        import MultiScaleDeformableAttention as MSDA

        value, locations, weights = MSDA.ms_deform_attn_backward(
            *ctx.saved_tensors, grad_out.contiguous(), ctx.step
        )
        return value, None, None, locations, weights, None


class Attend(nn.Module):
    """The client's own attention layer, with the extension's names of sizes."""

    def __init__(
        self, d_model: int, n_levels: int, n_heads: int, n_points: int, attention: Attention
    ) -> None:
        super().__init__()
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.attention = attention
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.sampling_offsets.weight, std=0.1)
        nn.init.uniform_(self.sampling_offsets.bias, -1.5, 1.5)

    def forward(
        self,
        query: Tensor,
        points: Tensor,
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        batch, num_queries, _ = query.shape
        samples = (batch, num_queries, self.n_heads, self.n_levels, self.n_points)
        rows = self.value_proj(value)
        if mask is not None:
            rows = rows.masked_fill(mask[..., None], 0.0)
        rows = rows.view(batch, -1, self.n_heads, rows.shape[-1] // self.n_heads)
        offsets = self.sampling_offsets(query).view(*samples, 2)
        weights = self.attention_weights(query).view(*samples[:3], -1).softmax(-1).view(samples)
        centre = points[:, :, None, :, None, :2]
        if points.shape[-1] == 2:
            locations = centre + offsets / shapes.flip(1)[None, None, None, :, None]
        else:
            box = points[:, :, None, :, None, 2:]
            locations = centre + offsets / self.n_points * box * 0.5
        out = self.attention(rows, shapes, starts, locations, weights, 64)
        return self.output_proj(out)


class _Layer(nn.Module):
    """One layer of the encoder or decoder: attention, then a feed-forward network."""

    def __init__(self, attend: nn.Module, *, decoder: bool) -> None:
        super().__init__()
        self.among = None
        if decoder:
            self.among = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
            self.among_norm = nn.LayerNorm(CHANNELS)
        self.attend = attend
        self.norms = nn.ModuleList([nn.LayerNorm(CHANNELS) for _ in range(2)])
        self.network = nn.Sequential(
            nn.Linear(CHANNELS, 2 * CHANNELS), nn.GELU(), nn.Linear(2 * CHANNELS, CHANNELS)
        )

    def forward(self, query: Tensor, position: Tensor, *attended: Any) -> Tensor:
        if self.among is not None:
            with_position = query + position
            among, _ = self.among(with_position, with_position, query, need_weights=False)
            query = self.among_norm(query + among)
        points, value, *levels = attended
        value = query if value is None else value
        query = self.norms[0](query + self.attend(query + position, points, value, *levels))
        return self.norms[1](query + self.network(query))


class Detector(nn.Module):
    """Proposals from the encoder's output become the decoder's queries and boxes."""

    def __init__(self, make_attend: Callable[[int, int, int, int], nn.Module], levels: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(levels, CHANNELS))
        size = (CHANNELS, levels, HEADS, POINTS)
        self.encoder, self.decoder = (
            nn.ModuleList([_Layer(make_attend(*size), decoder=decoder) for _ in range(LAYERS)])
            for decoder in (False, True)
        )
        self.proposal_norm = nn.LayerNorm(CHANNELS)
        self.classes = nn.Linear(CHANNELS, 3)
        self.boxes = nn.ModuleList([nn.Linear(CHANNELS, 4) for _ in range(LAYERS + 1)])
        self.query_position = nn.Linear(4, CHANNELS)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if hasattr(module, "sampling_offsets"):
                module._reset_parameters()  # type: ignore[operator]

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Features [B, C, H, W] and masks [B, H, W] of the levels; returns every output."""
        shapes = torch.as_tensor([feature.shape[2:] for feature in features])
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        ratios = torch.stack([_valid_ratios(mask) for mask in masks], 1).to(features[0])
        value = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], 1)
        mask = torch.cat([one.flatten(1) for one in masks], 1)
        position = torch.cat(
            [
                self.level_embed[level].expand(feature.shape[2:].numel(), -1)
                for level, feature in enumerate(features)
            ]
        )
        centres, sizes = _cells(features, ratios)
        memory = value
        for layer in self.encoder:
            points = centres[:, :, None] * ratios[:, None]
            memory = layer(memory, position, points, None, shapes, starts, mask)

        memory_of_proposals = self.proposal_norm(memory.masked_fill(mask[..., None], 0.0))
        proposals = torch.cat([centres, sizes], -1).clamp(0.02, 0.98).logit()
        proposals = self.boxes[-1](memory_of_proposals) + proposals
        scores = self.classes(memory_of_proposals)
        best = scores[..., 0].masked_fill(mask, -math.inf).topk(9, 1).indices[..., None]
        boxes = proposals.gather(1, best.expand(-1, -1, 4)).detach().sigmoid()
        query = memory_of_proposals.gather(1, best.expand(-1, -1, CHANNELS))
        outputs = [memory, scores, proposals.sigmoid()]
        for layer, refine in zip(self.decoder, self.boxes, strict=False):
            points = boxes[:, :, None] * torch.cat([ratios, ratios], -1)[:, None]  # [B, Q, L, 4]
            query = layer(query, self.query_position(boxes), points, memory, shapes, starts, mask)
            refined = (refine(query) + boxes.clamp(0.02, 0.98).logit()).sigmoid()
            outputs += [query, refined, self.classes(query)]
            boxes = refined.detach()
        return outputs


def _valid_ratios(mask: Tensor) -> Tensor:  # [B, 2] as (x, y)
    _, height, width = mask.shape
    valid = ~mask
    return torch.stack([valid[:, 0].sum(1) / width, valid[:, :, 0].sum(1) / height], -1)


def _cells(features: Sequence[Tensor], ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and box sizes of all cells, in fractions of the valid part: two of [B, S, 2]."""
    centres, sizes = [], []
    for level, feature in enumerate(features):
        height, width = feature.shape[2:]
        y, x = torch.meshgrid(
            (torch.arange(height).to(ratios) + 0.5) / height,
            (torch.arange(width).to(ratios) + 0.5) / width,
            indexing="ij",
        )
        grid = torch.stack([x, y], -1).flatten(0, 1)  # [H * W, 2]
        centres.append(grid / ratios[:, None, level])
        sizes.append(torch.full_like(centres[-1], 0.1 * 2**level))
    return torch.cat(centres, 1), torch.cat(sizes, 1)


def loss(outputs: Sequence[Tensor]) -> Tensor:
    """Every output counts, each cell with another weight."""
    terms = []
    for output in outputs:
        weights = torch.linspace(-1, 1, output[0].numel()).to(output).view(output[0].shape)
        terms.append((output * weights).mean() + F.smooth_l1_loss(output, torch.zeros_like(output)))
    return torch.stack(terms).sum()
