"""Per-frame features: any `transformers` AutoBackbone, by default a small random ResNet."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, ResNetConfig

from defvis.config import BackboneConfig


class Backbone(nn.Module):
    """Runs an AutoBackbone on every frame of a clip.

    Attributes:
        channels: Channels of the returned maps, fine to coarse.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        stages = list(config.out_features)
        classes: Any = MODEL_FOR_BACKBONE_MAPPING
        if config.name:
            # Not AutoBackbone.from_pretrained, which asks the hub even about a local folder.
            settings = AutoConfig.from_pretrained(config.name, out_features=stages)
            self.body = classes[type(settings)].from_pretrained(config.name, config=settings)
        else:
            sizes: dict[str, Any] = {  # transformers' types know nothing of out_features.
                "layer_type": config.layer_type,
                "embedding_size": config.embedding_size,
                "hidden_sizes": list(config.hidden_sizes),
                "depths": list(config.depths),
                "out_features": stages,
            }
            self.body = classes[ResNetConfig](ResNetConfig(**sizes))
        self.channels: tuple[int, ...] = tuple(self.body.channels)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Maps normalised frames [N, 3, H, W] to maps [N, C_i, H_i, W_i], fine to coarse."""
        return list(self.body(frames).feature_maps)
