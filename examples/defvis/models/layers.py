"""Small blocks shared by encoder, decoder and heads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stdeform import MSDeformAttn, STDeformAttn


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)), with x clamped to [eps, 1 - eps]."""
    x = x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))


def start_at_probability_(layer: nn.Linear | nn.Conv3d, probability: float) -> None:
    """Sets the bias so that sigmoids begin around it, as Lin et al., ICCV 2017, section 4.1."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -math.log((1 - probability) / probability))


def run_layer(layer: Callable[..., Tensor], *arguments: object, recompute: bool) -> Tensor:
    """Calls a layer; with `recompute`, its activations are computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        recomputed: Tensor = checkpoint(layer, *arguments, use_reentrant=False)
        return recomputed
    return layer(*arguments)


def xavier_(layers: nn.Module) -> None:
    """Draws all matrices of a transformer's layers from Xavier's uniform distribution (VisTR).

    Deformable attention then gets its own start again, which would be lost otherwise.
    """
    for parameter in layers.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in layers.modules():
        if isinstance(module, (STDeformAttn, MSDeformAttn)):
            module.reset_parameters()


class MLP(nn.Sequential):
    """Linear layers with ReLU between them; `sizes` lists the widths from input to output."""

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers[:-1])


class FeedForward(nn.Module):
    """Position-wise block with residual and LayerNorm after it (post-norm)."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, embed_dim),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., C] to [..., C]."""
        normed: Tensor = self.norm(x + self.layers(x))
        return normed
