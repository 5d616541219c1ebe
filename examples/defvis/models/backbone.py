"""Per-frame features: any `transformers` AutoBackbone, by default a small random ResNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, ResNetBackbone, ResNetConfig

from defvis.config import BackboneConfig


class Backbone(nn.Module):
    """Runs an AutoBackbone on every frame of a clip.

    Attributes:
        channels: Channels of the returned maps, fine to coarse.

    Raises:
        ValueError: If the named backbone cannot be loaded, or stages are to be used or frozen of a
            model that does not have them.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        stages = list(config.out_features)
        if config.name:
            self.body = _named(config.name, stages)
        else:
            sizes: dict[str, Any] = {  # transformers' types lack out_features.
                "layer_type": config.layer_type,
                "embedding_size": config.embedding_size,
                "hidden_sizes": list(config.hidden_sizes),
                "depths": list(config.depths),
                "out_features": stages,
            }
            self.body = ResNetBackbone(ResNetConfig(**sizes))
        self.channels: tuple[int, ...] = tuple(self.body.channels)
        if config.frozen_norm:
            _freeze_norms(self.body)
        if config.frozen_stages:
            _freeze_stages(self.body, config.frozen_stages)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Maps normalised frames [N, 3, H, W] to maps [N, C_i, H_i, W_i], fine to coarse."""
        return list(self.body(frames).feature_maps)


def _named(name: str, stages: list[str]) -> Any:
    """Loads a backbone from the hub or a folder."""
    try:
        # Not AutoBackbone.from_pretrained, which queries the hub even for a local folder.
        settings = AutoConfig.from_pretrained(name, out_features=stages)
        classes: Any = MODEL_FOR_BACKBONE_MAPPING
        if type(settings) not in classes:
            raise ValueError(
                f"it is a {settings.model_type}, which transformers has no backbone of"
            )
        return classes[type(settings)].from_pretrained(name, config=settings)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        # transformers explains itself at length.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model.backbone.name: cannot load {name!r}: {reason}") from error


class FrozenBatchNorm2d(nn.Module):
    """A batch norm with constant statistics and factors, which weight decay does not change either.

    Args:
        norm: The layer to take them from.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to the same shape."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child))
        else:
            _freeze_norms(child)


def _freeze_stages(body: nn.Module, count: int) -> None:
    """Freezes stem and first stages of a ResNet, or of a model with the same two parts."""
    stem = getattr(body, "embedder", None)
    stages = getattr(getattr(body, "encoder", None), "stages", None)
    if stem is None or stages is None or count > len(stages):
        raise ValueError(
            f"frozen_stages must be 0 or at most the stages of a ResNet, got {count} for "
            f"{type(body).__name__}"
        )
    for part in (stem, *stages[:count]):
        part.requires_grad_(False)
