"""Attention from queries to the cells of a clip: deformable, in frames, or dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defvis.config import ModelConfig
from stdeform import MSDeformAttn, STDeformAttn, st_deform_attn_from_offsets


@dataclass(frozen=True)
class Volume:
    """Positions and padding of the S cells of B clips; the same for all layers.

    Attributes:
        shapes: (T, H, W) of each of the L levels, fine to coarse; S is the sum of the products.
        position: Position encoding of the cells, [B, S, C].
        padding_mask: bool [B, S], True on padding; None if nothing is padded.
        valid_ratios: Real share of the padded volume, (x, y, t), of each level, [B, L, 3].
        frame_mask: bool [B, T], True on real frames.
    """

    shapes: tuple[tuple[int, int, int], ...]
    position: Tensor
    padding_mask: Tensor | None
    valid_ratios: Tensor
    frame_mask: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W) of the finest level, whose cells come first."""
        return self.shapes[0]


class DeformableAttention(nn.Module):
    """K learned points per head in the whole volume, in each level, around a query's reference."""

    layer: type[STDeformAttn] = STDeformAttn

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.deform = self.layer(
            config.embed_dim, config.levels, config.num_heads, config.points_per_level
        )
        # Of each level: the scale of boxes, and what makes an offset of 1 in t one frame, times T.
        self._box_scales = [
            (_box_scale(self.deform, points), 2.0 * points) for points in config.points_per_level
        ]

    def forward(
        self, queries: Tensor, references: Tensor | None, memory: Tensor, volume: Volume
    ) -> Tensor:
        """Attends from queries to cells.

        Args:
            queries: With their position, [B, Q, C].
            references: In fractions of the padded volume of each level: points (x, y, t),
                [B or 1, Q, L, 3], from which offsets count in cells; or boxes (x, y, t, w, h),
                [B, Q, L, 5], with whose size offsets in x and y scale. Dense attention takes None.
            memory: Features of the cells, [B, S, C].
            volume: Positions of the cells.

        Returns:
            [B, Q, C].
        """
        assert references is not None
        if references.shape[-1] == 5:
            references = self._boxes(references, volume.shape[0])
        out: Tensor = self.deform(queries, references, memory, volume.shapes, volume.padding_mask)
        return out

    def _boxes(self, references: Tensor, num_frames: int) -> Tensor:
        """The boxes (x, y, t, w, h) of each level as the layer takes them, [B, Q, L, 6]."""
        boxes = []
        for box, (scale, frames) in zip(references.unbind(2), self._box_scales, strict=True):
            size = box[..., 3:] * scale
            depth = torch.full_like(size[..., :1], frames / num_frames)
            boxes.append(torch.cat((box[..., :3], size, depth), dim=-1))
        return torch.stack(boxes, dim=2)


class _OwnFrameLayer(STDeformAttn):
    """An `STDeformAttn` whose offsets in t are 0."""

    def __init__(
        self, embed_dim: int, num_levels: int, num_heads: int, num_points: Sequence[int]
    ) -> None:
        super().__init__(embed_dim, num_levels, num_heads, num_points)
        self.sampling_offsets.register_forward_hook(_without_t)

    def reset_parameters(self) -> None:
        """Spreads the points of a head evenly up to the radius that they have in a volume.

        There, points of one radius differ in t. Here they would be equal, and stay so.
        """
        super().reset_parameters()
        with torch.no_grad():
            offsets = self.sampling_offsets.bias.view(self.num_heads, -1, 3)
            for level in offsets.split(self.num_points, dim=1):
                points = level.shape[1]
                share = torch.arange(1, points + 1, device=level.device) / points
                level[..., :2] = level[:, -1:, :2] * share[:, None]
            offsets[..., 2] = 0


def _without_t(_: nn.Module, __: object, offsets: Tensor) -> Tensor:
    """Offsets [..., M * K * 3] with zeros for t."""
    return F.pad(offsets.unflatten(-1, (-1, 3))[..., :2], (0, 1)).flatten(-2)


class OwnFrameAttention(DeformableAttention):
    """K learned points per head in the query's own frame: the same layer without its third axis.

    An ablation of sampling through time. At the start a head's points differ in their distance
    where those in a volume differ in t. Frames exchange information only in the decoder, by the
    attention among its queries and the classes' mean over frames.
    """

    layer = _OwnFrameLayer


class FramesAttention(nn.Module):
    """K learned points per head in every frame, around the query's (x, y): frames are levels.

    The encoder that the authors of Deformable VisTR released. Its weights are tied to the frames,
    so a clip may be shorter than `num_frames` but not longer. Padded frames get no weight.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.deform = MSDeformAttn(
            config.embed_dim, config.num_frames, config.num_heads, config.num_points
        )
        self._box_scale = _box_scale(self.deform, config.num_points)

    def forward(
        self, queries: Tensor, references: Tensor | None, memory: Tensor, volume: Volume
    ) -> Tensor:
        """Args as in `DeformableAttention`; the t of a reference is not used.

        Raises:
            ValueError: If the clip has more frames than there are weights for.
        """
        assert references is not None
        layer = self.deform
        frames, height, width = volume.shape
        if frames > layer.num_levels:
            raise ValueError(
                f"attention 'frames' has weights for num_frames = {layer.num_levels} frames, got a "
                f"clip of {frames}"
            )
        points = references[..., :2]
        if references.shape[-1] == 5:
            points = torch.cat((points, references[..., 3:] * self._box_scale), dim=-1)
        samples = (layer.num_heads, layer.num_levels, layer.num_points)
        offsets = layer.sampling_offsets(queries).unflatten(-1, (*samples, 2))[:, :, :, :frames]
        logits = layer.attention_weights(queries).unflatten(-1, samples)[:, :, :, :frames]
        value = layer.value_proj(memory)
        if volume.padding_mask is not None:
            value = value.masked_fill(volume.padding_mask[..., None], 0.0)
            padded = ~volume.frame_mask[:, None, None, :, None]
            logits = logits.masked_fill(padded, torch.finfo(logits.dtype).min)
        out: Tensor = layer.output_proj(
            st_deform_attn_from_offsets(
                value.unflatten(-1, (layer.num_heads, -1)),
                [(height, width)] * frames,
                points.expand(queries.shape[0], -1, frames, -1),
                offsets,
                logits,
            )
        )
        return out


class DenseAttention(nn.Module):
    """Every query attends to every cell, as in VisTR; time and memory grow with their product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            config.embed_dim, config.num_heads, dropout=config.dropout, batch_first=True
        )

    def forward(
        self, queries: Tensor, references: Tensor | None, memory: Tensor, volume: Volume
    ) -> Tensor:
        """Args as in `DeformableAttention`; references are not used."""
        out: Tensor = self.attention(
            queries,
            memory + volume.position,
            memory,
            key_padding_mask=volume.padding_mask,
            need_weights=False,
        )[0]
        return out


ATTENTIONS: dict[str, type[DeformableAttention | FramesAttention | DenseAttention]] = {
    "deformable": DeformableAttention,
    "own-frame": OwnFrameAttention,
    "frames": FramesAttention,
    "dense": DenseAttention,
}


def first_offsets(layer: STDeformAttn | MSDeformAttn, num_points: int) -> Tensor:
    """The pattern an untrained layer samples in a level, in cells: (x, y, t), [M, K, 3], or (x, y).

    It does not depend on the number of channels.
    """
    heads = layer.num_heads
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        tiny = type(layer)(heads, num_levels=1, num_heads=heads, num_points=[num_points])
    offsets: Tensor = tiny.sampling_offsets.bias.detach().unflatten(0, (heads, num_points, -1))
    return offsets


def _box_scale(layer: STDeformAttn | MSDeformAttn, num_points: int) -> float:
    """Factor by which boxes are enlarged before a layer gets them.

    An offset o moves a point by o / K * box / 2. So at the start the outermost points of the
    pattern lie on the edge of the box.
    """
    return num_points / float(first_offsets(layer, num_points)[..., :2].abs().max())
