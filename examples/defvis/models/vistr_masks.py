"""Mask branch of VisTR: attention maps of each query, an FPN per frame, 3-D convolutions in time.

Every (slot, frame) has its own stack of maps, so this is by far the largest part of the model's
memory. Slots are computed in chunks, and in training only the matched ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defvis.config import ModelConfig
from defvis.models.deform_conv import DeformConv2d
from defvis.models.layers import run_layer, start_at_probability_
from defvis.models.mask_inputs import FrameMaps, MaskInputs


class FrameFeatures(nn.Module):
    """What all slots of a frame share: keys and first convolution of the memory, lateral maps.

    VisTR convolves the memory together with the attention maps of a slot, once per slot. A
    convolution is linear, so its memory part is computed here, once per frame.
    """

    def __init__(self, config: ModelConfig, lateral_channels: Sequence[int]) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_heads
        self.keys = nn.Conv2d(width, width, 1)
        self.memory = nn.Conv2d(width, width + heads, 3, padding=1)
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, outputs, 1)
            for channels, outputs in zip(
                reversed(lateral_channels), _widths(config, len(lateral_channels)), strict=True
            )
        )
        _start(self.keys, bound=math.sqrt(3 / width))  # Xavier's, for a square matrix
        _start(self.memory, bound=_he_bound((width + heads) * 9))
        for lateral in self.laterals:
            _start(lateral)

    def forward(self, maps: FrameMaps) -> tuple[Tensor, ...]:
        """Computes the features of N frames.

        Returns:
            Keys [N, C, h, w], memory part of the first convolution [N, C + M, h, w], and the
            projected laterals, coarse to fine.
        """
        projected = [
            conv(x) for conv, x in zip(self.laterals, reversed(maps.laterals), strict=True)
        ]
        return self.keys(maps.memory), self.memory(maps.memory), *projected


class SequenceMaskHead(nn.Module):
    """Attention maps, FPN with a deformable convolution, 3-D convolutions over a slot's frames."""

    def __init__(self, config: ModelConfig, num_laterals: int, prior: float = 0.12) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_heads
        self._heads, self._chunk = heads, config.mask_chunk
        self._recompute = config.checkpointing
        widths = _widths(config, num_laterals)
        outputs, last = max(width // 16, 24), max(width // 32, 12)
        self.query = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.zeros_(self.query.bias)
        self.maps = nn.Conv2d(heads, width + heads, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1)
            for inputs, outputs in itertools.pairwise((width + heads, *widths))
        )
        self.norms = nn.ModuleList(_norm(8, channels) for channels in (width + heads, *widths))
        self.deform = DeformConv2d(widths[-1], outputs)
        self.deform_norm = _norm(8, outputs)
        self.sequence_convs = nn.ModuleList(
            nn.Conv3d(inputs, last, 3, padding=2, dilation=2) for inputs in (outputs, last, last)
        )
        self.sequence_norms = nn.ModuleList(SequenceNorm(math.gcd(4, last), last) for _ in range(3))
        self.mask = nn.Conv3d(last, 1, 1)
        start_at_probability_(self.mask, prior)  # most of a frame is background
        _start(self.maps, bound=_he_bound((width + heads) * 9))
        for conv in self.convs:
            _start(conv)

    def forward(self, inputs: MaskInputs) -> Tensor:
        """Computes mask logits.

        Returns:
            [B, J, T, h, w] at the size of the finest backbone map; zeros for absent slots.
        """
        features, queries, present = inputs.features, inputs.queries, inputs.present
        batch, slots, frames, _ = queries.shape
        if present is None:
            rows = torch.arange(batch * slots, device=queries.device)
        else:
            rows = present.flatten().nonzero()[:, 0]
        clips, queries = rows // max(slots, 1), queries.flatten(0, 1)[rows]
        count = rows.shape[0]  # not len(), which makes a number of an exported batch's symbol
        chunk = self._chunk or count
        starts = range(0, count, chunk) if self._chunk else [0] if count else []
        masks = [
            run_layer(
                self._masks_of,
                queries[start : start + chunk],
                clips[start : start + chunk],
                inputs.cell_padding,
                *features,
                recompute=self._recompute,
            )
            for start in starts
        ]
        if not masks:  # Still a function of all weights: parallel training waits for gradients.
            nothing = sum(x.flatten()[:0].sum() for x in (*self.parameters(), *features, queries))
            size = features[-1].shape[-2:]
            empty: Tensor = nothing + features[-1].new_zeros(batch, slots, frames, *size)
            return empty
        found = torch.cat(masks)
        if present is not None:
            everything = found.new_zeros(batch * slots, *found.shape[1:])
            found = everything.index_copy(0, rows, found)
        everyone: Tensor = found.unflatten(0, (batch, slots))
        return everyone

    def _masks_of(
        self,
        queries: Tensor,  # [P, T, C]
        clips: Tensor,  # int64 [P], the clip of each
        cell_padding: Tensor | None,  # [B, T, h, w]
        keys: Tensor,  # [B, T, C, h, w]
        memory: Tensor,  # [B, T, C + M, h, w]
        *laterals: Tensor,  # [B, T, C_i, h_i, w_i], coarse to fine
    ) -> Tensor:  # [P, T, h_n, w_n]
        slots, frames = queries.shape[:2]
        padding = None if cell_padding is None else cell_padding[clips]
        maps = self._attention_maps(queries, keys[clips], padding)
        x = memory[clips].flatten(0, 1) + self.maps(maps.flatten(0, 1))
        x = F.relu(self.norms[0](x))
        for conv, norm, lateral in zip(self.convs, self.norms[1:], laterals, strict=True):
            x = F.relu(norm(conv(x)))
            x = F.interpolate(x, size=lateral.shape[-2:], mode="nearest")
            x = x + lateral[clips].flatten(0, 1)
        x = F.relu(self.deform_norm(self.deform(x)))
        x = x.unflatten(0, (slots, frames)).transpose(1, 2)  # [P, C / 16, T, h, w]
        real = None if padding is None else ~padding.flatten(2).all(-1)[:, None, :, None, None]
        for conv, norm in zip(self.sequence_convs, self.sequence_norms, strict=True):
            if real is not None:  # Beyond its end a clip holds zeros, as before its start.
                x = x * real
            x = F.relu(norm(conv(x), real))
        masks: Tensor = self.mask(x)[:, 0]
        return masks

    def _attention_maps(self, queries: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        """Attention of a query over heads and cells of its frame.

        As in DETR and VisTR, the heads share one softmax.

        Args:
            queries: [P, T, C].
            keys: [P, T, C, h, w].
            padding: bool [P, T, h, w], or None.

        Returns:
            [P, T, M, h, w], summing to 1 over the last three; a frame of padding alone is no NaN.
        """
        shape = (self._heads, -1)
        q = self.query(queries).unflatten(-1, shape)  # [P, T, M, C / M]
        logits = torch.einsum(
            "ptmc,ptmchw->ptmhw", q * q.shape[-1] ** -0.5, keys.unflatten(2, shape)
        )
        if padding is not None:
            logits = logits.masked_fill(padding[:, :, None], torch.finfo(logits.dtype).min)
        maps: Tensor = logits.flatten(2).softmax(-1).view_as(logits)
        return maps


class SequenceNorm(nn.GroupNorm):
    """GroupNorm over the real frames of a slot, so padding in time changes nothing."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Normalises.

        Args:
            x: [P, C, T, h, w].
            real: bool [P, 1, T, 1, 1], True on real frames; None if all are.
        """
        if real is None:
            return super().forward(x)
        weight = real[:, None].to(x.dtype)  # [P, 1, 1, T, 1, 1]
        groups = x.unflatten(1, (self.num_groups, -1))
        axes = (2, 3, 4, 5)
        count = weight.sum(axes, keepdim=True) * groups[0, 0, :, 0].numel()
        count = count.clamp(min=1)
        centred = groups - (groups * weight).sum(axes, keepdim=True) / count
        variance = (centred.square() * weight).sum(axes, keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return torch.addcmul(
            self.bias[:, None, None, None], normed, self.weight[:, None, None, None]
        )


def _widths(config: ModelConfig, num_laterals: int) -> list[int]:
    """Channels at each lateral map, coarse to fine: C / 2, C / 4, ..., but no fewer than 24.

    VisTR ends with 24 before the 3-D convolutions and 12 in them, from C = 384; a narrower model
    has the same numbers.
    """
    return [max(config.embed_dim >> level, 24) for level in range(1, num_laterals + 1)]


def _norm(groups: int, channels: int) -> nn.GroupNorm:
    """GroupNorm with the most groups, up to `groups`, that divide the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def _he_bound(fan_in: int) -> float:
    """Bound of Kaiming's uniform distribution for a = 1."""
    return math.sqrt(3 / fan_in)


def _start(conv: nn.Module, bound: float | None = None) -> None:
    """Uniform weights up to `bound`, by default Kaiming's, and no bias."""
    assert isinstance(conv, nn.Conv2d)
    bound = _he_bound(conv.weight[0].numel()) if bound is None else bound
    nn.init.uniform_(conv.weight, -bound, bound)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
