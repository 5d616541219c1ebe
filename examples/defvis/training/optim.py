"""AdamW with learning rates by kind of layer, the schedule, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from defvis.config import OptimConfig
from defvis.models.model import DefVIS
from defvis.training.sharding import copy_of, load_whole, local


def build_optimizer(model: DefVIS, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with the paper's groups of learning rates.

    Groups are named "backbone", "offsets" (layers that predict sampling offsets, and reference
    boxes; found by the type of their module) and "base", each with and without weight decay.
    Unless `decay_all` is set only matrices and convolution kernels decay; biases, norms and
    learned embeddings do not.
    """
    kinds: dict[int, str] = {id(p): "backbone" for p in model.backbone.parameters()}
    kinds.update({id(p): "offsets" for p in model.offset_parameters()})
    rates = {
        "base": config.learning_rate,
        "backbone": config.learning_rate * config.backbone_multiplier,
        "offsets": config.learning_rate * config.offset_multiplier,
    }
    decayed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    } | {
        id(module.in_proj_weight)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = config.decay_all or id(parameter) in decayed
            key = (kinds.get(id(parameter), "base"), decays)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rates[kind],
                "weight_decay": config.weight_decay if decays else 0.0,
                "name": kind,
            }
            for (kind, decays), parameters in groups.items()
        ],
        fused=True,
    )


def build_schedule(optimizer: torch.optim.Optimizer, steps: int, config: OptimConfig) -> LambdaLR:
    """Linear warm-up to 1, then a cosine or a drop to `final_fraction`, over `steps` steps."""

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
        if config.schedule == "step":
            return warmup * (config.final_fraction if step >= config.drop_at * steps else 1.0)
        left = max(1, steps - config.warmup_steps)
        progress = min(1.0, max(0, step - config.warmup_steps) / left)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return warmup * (config.final_fraction + (1 - config.final_fraction) * cosine)

    return LambdaLR(optimizer, factor)


class WeightAverage:
    """Exponential moving average of weights and buffers, kept as a second model.

    Args:
        model: The model to follow.
        decay: Share of the old average per step; smaller at first, (1 + n) / (10 + n).

    Attributes:
        model: The average, in eval mode.
    """

    def __init__(self, model: DefVIS, decay: float) -> None:
        self.model = copy_of(model).eval().requires_grad_(False)
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's present weights."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        averaged, current = self.model.state_dict(), model.state_dict()
        floats = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [local(averaged[name]) for name in floats],
            [local(current[name]) for name in floats],
            1 - decay,
        )
        for name in averaged.keys() - set(floats):
            averaged[name].copy_(current[name])

    def state_dict(self) -> dict[str, object]:
        """Weights and number of updates."""
        return {"model": self.model.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restores `state_dict`."""
        load_whole(self.model, state["model"])  # type: ignore[arg-type]
        self._updates = int(state["updates"])  # type: ignore[call-overload]
