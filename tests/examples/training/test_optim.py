"""Parameter groups, schedule, averaged weights."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from defvis.config import Config, OptimConfig
from defvis.models.model import DefVIS
from defvis.training.optim import WeightAverage, build_optimizer, build_schedule
from tests.examples.support import changed

FRAMES_AS_LEVELS = ("encoder_attention=frames", "queries=free", "refine_boxes=false")


@pytest.mark.parametrize(
    "changes",
    [(), ("queries=slots",), FRAMES_AS_LEVELS],
    ids=["small", "slots", "frames as levels"],
)
def test_groups(config: Config, changes: tuple[str, ...]) -> None:
    model = DefVIS(changed(config.model, *changes))
    optim = OptimConfig(learning_rate=1.0, backbone_multiplier=0.1, offset_multiplier=0.01)
    groups = build_optimizer(model, optim).param_groups
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate)
    for name, parameter in model.named_parameters():
        expected = 1.0
        if name.startswith("backbone."):
            expected = 0.1
        places = ("sampling_offsets", "references", "queries.points", "queries.size")
        if any(kind in name for kind in places):
            expected = 0.01
        lr, decay = rate[id(parameter)]
        assert lr == expected, name
        embedding = name.endswith(("references.logits", "queries.table")) or "slot_" in name
        assert decay == (1e-4 if parameter.dim() >= 2 and not embedding else 0.0), name


def test_frozen_parameters_are_left_out(config: Config) -> None:
    model = DefVIS(config.model)
    model.backbone.requires_grad_(False)
    groups = build_optimizer(model, OptimConfig()).param_groups
    assert {group["name"] for group in groups} == {"base", "offsets"}


def _rates(steps: int, optim: OptimConfig) -> list[float]:
    """The rate of each step, and the one after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, steps, optim)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_cosine_schedule() -> None:
    rates = _rates(110, OptimConfig(warmup_steps=10, final_fraction=0.1))
    chosen = [rates[step] for step in (0, 9, 60, 110)]
    assert chosen == pytest.approx([0.2, 2.0, 2.0 * 0.55, 0.2])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_step_schedule() -> None:
    """50 epochs of 20 steps: the rate drops to a tenth at epoch 40, as in the paper."""
    optim = OptimConfig(warmup_steps=0, schedule="step", drop_at=0.8, final_fraction=0.1)
    assert _rates(1000, optim) == pytest.approx([2.0] * 800 + [0.2] * 201)


def test_everything_decays_if_asked(config: Config) -> None:
    groups = build_optimizer(DefVIS(config.model), OptimConfig(decay_all=True)).param_groups
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert len(groups) == 3


def test_weight_average(config: Config) -> None:
    model = DefVIS(config.model)
    average = WeightAverage(model, decay=0.9)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average.update(model)
    averaged, name = average.model.state_dict(), "decoder.queries.seed_content.weight"
    # First update: decay (1 + 0) / (10 + 0).
    torch.testing.assert_close(averaged[name], start[name] + 0.9)
    for _ in range(200):
        average.update(model)
    torch.testing.assert_close(averaged[name], start[name] + 1)
    assert not average.model.training
    restored = WeightAverage(model, decay=0.9)
    restored.load_state_dict(average.state_dict())
    for name, tensor in restored.model.state_dict().items():
        assert tensor.equal(averaged[name])
