"""Five tasks that tell what deformable and dense attention learn; see compare_tasks.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from defvis.comparisons.convergence import spread
from defvis.config import ModelConfig
from defvis.models.attention import Volume
from defvis.models.encoder import Encoder
from defvis.models.position_encoding import sine_position_3d

SHAPE = T, H, W = 4, 8, 12
CELLS, BATCH, VALUES, KEYS = T * H * W, 4, 4, 16
KINDS = ("deformable", "dense")
RATES = (1e-3, 2e-3, 4e-3)
# Of each kind: the rate, and a curve for each seed.
Runs = dict[str, dict[str, Any]]
WINDOW = 20  # steps of a point of the curve


@dataclass(frozen=True)
class Clips:
    """A batch.

    Attributes:
        features: What the cells show, [B, S, F].
        target: What they have to say, [B, S, VALUES], of mean 0.
        counts: The cells that are asked, bool [B, S].
    """

    features: Tensor
    target: Tensor
    counts: Tensor


def fixed_place() -> Clips:
    """The value of the cell one frame on, two down and one to the right."""
    t, y, x = _places()
    inside = (t < T - 1) & (y < H - 2) & (x < W - 1)
    values = torch.randn(BATCH, CELLS, VALUES)
    target = values.roll(-((1 * H + 2) * W + 1), dims=1)
    return Clips(values, target, inside.expand(BATCH, -1))


def told_place() -> Clips:
    """The value of a cell up to a frame, 2 rows and 3 columns away; the cell shows how far."""
    steps = [torch.randint(-far, far + 1, (BATCH, CELLS)) for far in (1, 2, 3)]
    places = [
        (place + step).clamp(0, size - 1)
        for place, step, size in zip(_places(), steps, SHAPE, strict=True)
    ]
    away = [to - place for to, place in zip(places, _places(), strict=True)]
    values = torch.randn(BATCH, CELLS, VALUES)
    t, y, x = places
    target = _take(values, (t * H + y) * W + x)
    features = torch.cat((values, torch.stack(away, -1) / torch.tensor([1, 2, 3])), -1)
    return Clips(features, target, _all_cells())


def same_look() -> Clips:
    """The value of the one other cell, anywhere in the clip, that shows the same random key."""
    order = torch.rand(BATCH, CELLS).argsort(1)
    partner = torch.empty_like(order)
    partner.scatter_(1, order, order.unflatten(1, (-1, 2)).flip(-1).flatten(1))
    keys = torch.randn(BATCH, CELLS, KEYS)
    keys = _take(keys, torch.minimum(partner, torch.arange(CELLS)))
    values = torch.randn(BATCH, CELLS, VALUES)
    target = _take(values, partner)
    return Clips(torch.cat((values, keys), -1), target, _all_cells())


def same_object() -> Clips:
    """The colour of the cell's object, of which each cell shows a noisy copy; objects move."""
    t, y, x = _places()
    colours = torch.randn(BATCH, 3, VALUES)
    first = torch.randint(0, 1000, (BATCH, 3, 2)) % torch.tensor([H - 2, W - 2])
    speed = torch.stack((torch.randint(-1, 2, (BATCH, 3)), torch.randint(-2, 3, (BATCH, 3))), -1)
    top, left = (first[..., None] + speed[..., None] * t).unbind(2)  # [B, 3, S]
    inside = (y >= top) & (y < top + 3) & (x >= left) & (x < left + 3)
    nearest = (inside * torch.tensor([1, 2, 3])[:, None]).amax(1)  # 0 is background
    target = _take(colours, (nearest - 1).clamp(min=0)) * (nearest > 0)[..., None]
    return Clips(target + torch.randn_like(target), target, nearest > 0)


def everything() -> Clips:
    """The mean of all cells, scaled to a variance of 1."""
    values = torch.randn(BATCH, CELLS, VALUES)
    target = CELLS**0.5 * values.mean(1, keepdim=True).expand_as(values)
    return Clips(values, target, _all_cells())


def _places() -> tuple[Tensor, Tensor, Tensor]:
    """Frame, row and column of the cells, [S] each."""
    t, y, x = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"))
    return t, y, x


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of [B, N, C] by an index [B, S]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _all_cells() -> Tensor:
    return torch.ones(BATCH, CELLS, dtype=torch.bool)


TASKS: dict[str, Callable[[], Clips]] = {
    task.__name__.replace("_", " "): task
    for task in (fixed_place, told_place, same_look, same_object, everything)
}


class Network(nn.Module):
    """A linear layer, two layers of the encoder, a linear layer."""

    def __init__(self, kind: str, features: int) -> None:
        super().__init__()
        config = ModelConfig(
            embed_dim=48, num_heads=4, num_points=12, encoder_layers=2, feedforward_dim=96,
            encoder_attention=kind,  # type: ignore[arg-type]  # checked by the encoder
        )  # fmt: skip
        padding = torch.zeros(1, *SHAPE, dtype=torch.bool)
        position = sine_position_3d(padding, config.embed_dim).flatten(2).transpose(1, 2)
        ratios, frames = torch.ones(1, 1, 3), torch.ones(1, T, dtype=torch.bool)
        self._volume = Volume((SHAPE,), position, None, ratios, frames)
        self.inputs = nn.Linear(features, config.embed_dim)
        self.encoder = Encoder(config)
        self.outputs = nn.Linear(config.embed_dim, VALUES)

    def forward(self, features: Tensor) -> Tensor:
        """[B, S, F] to [B, S, VALUES]."""
        out: Tensor = self.outputs(self.encoder(self.inputs(features), self._volume))
        return out


def train(task: str, kind: str, rate: float, seed: int, steps: int) -> list[float]:
    """The explained variance, 1 - error / variance, as means of `WINDOW` steps each."""
    torch.manual_seed(seed)
    network = Network(kind, TASKS[task]().features.shape[-1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4, fused=True)
    curve, explained = [], []
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, step / 50)
        clips = TASKS[task]()
        wrong = (network(clips.features) - clips.target)[clips.counts].square().mean()
        optimiser.zero_grad()
        wrong.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        explained.append(1 - float(wrong.detach() / clips.target[clips.counts].square().mean()))
        if step % WINDOW == 0:
            curve.append(round(statistics.mean(explained[-WINDOW:]), 4))
    return curve


def compare(task: str, steps: int, seeds: int, say: Callable[[str], None]) -> Runs:
    """Finds the best rate of each kind with the first seed, and takes it for the others.

    Args:
        task: One of `TASKS`.
        steps: Of a training.
        seeds: How many.
        say: Called with a sentence on the result of each kind.

    Raises:
        ValueError: If `steps` is not a multiple of `WINDOW`: the last ones would be in no curve.
    """
    if steps % WINDOW:
        raise ValueError(f"steps must be a multiple of {WINDOW}, got {steps}")
    found: Runs = {}
    for kind in KINDS:
        tried = {rate: train(task, kind, rate, 0, steps) for rate in RATES}
        # The most explained over the whole training is the fastest.
        best = max(RATES, key=lambda rate: sum(tried[rate]))
        curves = [tried[best]]
        curves += [train(task, kind, best, seed, steps) for seed in range(1, seeds)]
        found[kind] = {"rate": best, "curves": curves}
        ends = ", ".join(f"{curve[-1]:.2f}" for curve in curves)
        say(f"{task}, {kind}: rate {best:g}, explained {ends}")
    return found


def to_rows(found: Mapping[str, Runs]) -> dict[str, str]:
    """Of each task, cells of a table: what both kinds explain after 100 steps, and at the end."""
    return {
        task: " | ".join(
            spread([curve[point] for curve in kinds[kind]["curves"]], digits=2)
            for point in (100 // WINDOW - 1, -1)
            for kind in KINDS
        )
        for task, kinds in found.items()
    }


def draw(found: Mapping[str, Runs], path: Path) -> None:
    """A panel for each task, a line for each run."""
    figure = Figure(figsize=(13, 3), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (task, kinds) in zip(panels, found.items(), strict=True):
        for number, (kind, runs) in enumerate(kinds.items()):
            for order, curve in enumerate(runs["curves"]):
                steps = [WINDOW * point for point in range(1, len(curve) + 1)]
                label = kind if order == 0 else None
                axes.plot(steps, curve, color=f"C{number}", label=label)
        axes.set(title=task, xlabel="steps", ylim=(-0.05, 1.05))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="explained variance")
    panels[0].legend()
    figure.savefig(path, dpi=110)
