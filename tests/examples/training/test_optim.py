"""Parameter groups, schedule, averaged weights."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from defvis.config import Config, OptimConfig
from defvis.models.model import DefVIS
from defvis.training.optim import WeightAverage, build_optimizer, build_schedule


def test_groups(config: Config) -> None:
    model = DefVIS(config.model)
    optim = OptimConfig(learning_rate=1.0, backbone_multiplier=0.1, offset_multiplier=0.01)
    groups = build_optimizer(model, optim).param_groups
    rate = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(rate)
    for name, parameter in model.named_parameters():
        expected = 1.0
        if name.startswith("backbone."):
            expected = 0.1
        if "sampling_offsets" in name or "references" in name:
            expected = 0.01
        lr, decay = rate[id(parameter)]
        assert lr == expected, name
        matrix = parameter.dim() >= 2 and "slot_" not in name and "references" not in name
        assert decay == (1e-4 if matrix else 0.0), name


def test_frozen_parameters_are_left_out(config: Config) -> None:
    model = DefVIS(config.model)
    model.backbone.requires_grad_(False)
    groups = build_optimizer(model, OptimConfig()).param_groups
    assert {group["name"] for group in groups} == {"base", "offsets"}


def test_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, 110, OptimConfig(warmup_steps=10, final_fraction=0.1))
    rates = []
    for _ in range(110):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(2.0 * 0.55)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_step_schedule() -> None:
    """50 epochs of 20 steps: the rate drops to a tenth at epoch 40, as in the paper."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    config = OptimConfig(warmup_steps=0, schedule="step", drop_at=0.8, final_fraction=0.1)
    schedule = build_schedule(optimizer, 1000, config)
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2.0] * 800 + [0.2] * 200)


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
    weight = average.model.state_dict()["decoder.queries.slot_content"]
    # First update: decay (1 + 0) / (10 + 0).
    torch.testing.assert_close(weight, start["decoder.queries.slot_content"] + 0.9)
    for _ in range(200):
        average.update(model)
    torch.testing.assert_close(
        average.model.state_dict()["decoder.queries.slot_content"],
        start["decoder.queries.slot_content"] + 1,
    )
    assert not average.model.training
    restored = WeightAverage(model, decay=0.9)
    restored.load_state_dict(average.state_dict())
    for a, b in zip(
        restored.model.state_dict().values(), average.model.state_dict().values(), strict=True
    ):
        assert a.equal(b)
