"""Mask head: every (slot, frame) query writes the weights of a tiny network run on its frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defvis.config import ModelConfig
from defvis.models.mask_inputs import FrameMaps, MaskInputs


class MaskFeatures(nn.Module):
    """Merges encoder memory, fine backbone maps and pixels into features at half the frame size."""

    def __init__(self, config: ModelConfig, lateral_channels: Sequence[int]) -> None:
        super().__init__()
        width = config.mask_dim
        self.memory = nn.Conv2d(config.embed_dim, width, 1)
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels in lateral_channels
        )
        self.pixels = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.refine = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU())
            for _ in range(len(lateral_channels) + 1)
        )

    def forward(self, maps: FrameMaps) -> tuple[Tensor, ...]:
        """Returns one map, [N, mask_dim, ceil(H / 2), ceil(W / 2)]."""
        features: Tensor = self.memory(maps.memory)
        finer = [conv(x) for conv, x in zip(self.laterals, maps.laterals, strict=True)]
        finer = [*reversed(finer), self.pixels(maps.pixels)]
        for lateral, refine in zip(finer, self.refine, strict=True):
            features = F.interpolate(
                features, size=lateral.shape[-2:], mode="bilinear", align_corners=False
            )
            features = refine(features + lateral)
        return (features,)


class DynamicMaskHead(nn.Module):
    """Per-query network on mask features and coordinates relative to the query's box.

    Three 1x1 layers (mask_dim + 2 -> hidden -> hidden -> 1) whose weights are a linear function
    of the query, as in CondInst (Tian et al., ECCV 2020, section 3).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inputs, hidden = config.mask_dim + 2, config.mask_hidden
        self.hidden = hidden
        self.sizes = (inputs * hidden, hidden, hidden * hidden, hidden, hidden, 1)
        self.controller = nn.Linear(config.embed_dim, sum(self.sizes))
        nn.init.normal_(self.controller.weight, std=0.02)
        nn.init.normal_(self.controller.bias, std=0.2)

    def forward(self, inputs: MaskInputs) -> Tensor:
        """Returns mask logits of all slots, [B, J, T, h, w]."""
        queries, boxes = inputs.queries, inputs.boxes
        batch, slots, frames, _ = queries.shape
        (maps,) = inputs.features
        height, width = maps.shape[-2:]
        w1, b1, w2, b2, w3, b3 = self.controller(queries.transpose(1, 2)).split(self.sizes, dim=-1)

        # The relative coordinates (x - centre) / size enter linearly, so the grid is appended to
        # the features once per frame, and centre and size go into the first layer's weights.
        boxes = boxes.transpose(1, 2)  # [B, T, J, 4]
        centre, size = boxes[..., None, :2], boxes[..., None, 2:].clamp(min=0.05)
        w1 = w1.unflatten(-1, (self.hidden, -1))  # [B, T, J, hidden, mask_dim + 2]
        slope = w1[..., -2:] / size
        w1 = torch.cat((w1[..., :-2], slope), dim=-1)
        b1 = b1 - (slope * centre).sum(-1)

        y = (torch.arange(height, device=maps.device, dtype=maps.dtype) + 0.5) / height
        x = (torch.arange(width, device=maps.device, dtype=maps.dtype) + 0.5) / width
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)))
        cells = torch.cat((maps, grid.expand(batch, frames, -1, -1, -1)), dim=2).flatten(3)

        z: Tensor = w1.flatten(2, 3) @ cells  # [B, T, J * hidden, h * w]
        z = F.relu(z.unflatten(2, (slots, self.hidden)) + b1[..., None])
        w2 = w2.unflatten(-1, (self.hidden, self.hidden))
        z = F.relu(w2 @ z + b2[..., None])
        z = w3[..., None, :] @ z + b3[..., None]
        masks: Tensor = z.squeeze(3).unflatten(-1, (height, width)).transpose(1, 2)
        return masks
