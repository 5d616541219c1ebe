"""What a mask branch reads: maps of single frames, then the slots of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FrameMaps:
    """Maps of N frames, from which mask features are computed.

    Attributes:
        memory: Output of the encoder, [N, C, h, w].
        laterals: Backbone maps [N, C_i, h_i, w_i], fine to coarse.
        pixels: Normalised frames, [N, 3, H, W].
    """

    memory: Tensor
    laterals: Sequence[Tensor]
    pixels: Tensor


@dataclass(frozen=True)
class MaskInputs:
    """Mask features of B clips and J slots of each, whose masks a head computes.

    Attributes:
        features: Result of `MaskFeatures` or `FrameFeatures`, [B, T, ...] each.
        queries: [B, J, T, C].
        boxes: [B, J, T, 4] in fractions of the padded frame.
        cell_padding: bool [B, T, h, w], True on padding; None if nothing is padded.
        present: bool [B, J], False on slots whose masks are not needed; None if all are.
    """

    features: tuple[Tensor, ...]
    queries: Tensor
    boxes: Tensor
    cell_padding: Tensor | None = None
    present: Tensor | None = None
