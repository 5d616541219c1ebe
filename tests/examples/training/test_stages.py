"""One step of training: precision, loss scaling, accumulation, number of steps."""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from defvis.config import Config, DataConfig
from defvis.data.clips import Batch, ClipDataset, FrameCache, Targets, collate
from defvis.data.ytvis import find_files, load
from defvis.models.model import DefVIS
from defvis.training.distributed import World
from defvis.training.stages import JointStage, planned_stages
from tests.examples.support import changed


@pytest.fixture
def frozen(config: Config) -> Config:
    """Without batch norm: its statistics depend on how a batch is cut."""
    return changed(config, "model.backbone.frozen_norm=true", "model.num_classes=10")


@pytest.fixture
def batch(digits: Path) -> Batch:
    """Two different clips, each twice: clip 0, 1, 0, 1."""
    data = load(*find_files(digits / "train"))
    clips = ClipDataset(data, 4, DataConfig(paste=0), 0, FrameCache(1))
    return collate([clips[0, 0], clips[0, 1]] * 2)


def _stage(config: Config, model: DefVIS | None = None, videos: int = 24) -> JointStage:
    torch.manual_seed(0)
    return JointStage(model or DefVIS(config.model).train(), config, videos, World())


@pytest.mark.parametrize("kind", ["class_output=sigmoid", "class_output=softmax", "queries=slots"])
def test_accumulated_parts_equal_the_whole_batch(kind: str, frozen: Config, batch: Batch) -> None:
    """Parts with other numbers of objects each: nothing but rounding differs."""
    frozen = changed(frozen, "batch_size=4", f"model.{kind}")
    kept = torch.tensor([0])
    batch.targets[0] = Targets(*(getattr(batch.targets[0], f.name)[kept] for f in fields(Targets)))
    visible = [int(target.valid.sum()) for target in batch.targets]
    assert sum(visible[:2]) != sum(visible[2:])
    moments, losses = [], []
    for parts in (1, 2, 4):
        stage = _stage(changed(frozen, f"accumulation={parts}"))
        losses.append(stage.step(batch))
        moments.append([s["exp_avg"] for s in stage.state_dict()["optimizer"]["state"].values()])
    # In fp32, sums taken in another order: the rounding that test_distributed.py allows as well.
    for other in (1, 2):
        for name in losses[0]:
            torch.testing.assert_close(losses[other][name], losses[0][name], rtol=1e-4, atol=1e-6)
        for a, b in zip(moments[0], moments[other], strict=True):
            assert (a - b).abs().max() <= 2e-4 * a.abs().max() + 1e-6


def test_the_identity_loss_is_in_the_total(frozen: Config, batch: Batch) -> None:
    """With its weight; the pairs that it is divided by are those of all losses."""
    seeds = changed(frozen, "batch_size=4")
    with_it, without = (
        _stage(changed(seeds, f"loss.identity_weight={weight}")).step(batch) for weight in (3, 0)
    )
    assert 0.1 < with_it["identity"] < 10, "of one pair; there are dozens"
    torch.testing.assert_close(with_it["total"], without["total"] + 3 * with_it["identity"])


def test_parts(batch: Batch) -> None:
    assert [len(part.targets) for part in batch.split(3)] == [2, 2]
    assert [len(part.targets) for part in batch.split(4)] == [1] * 4
    assert torch.cat([part.frames for part in batch.split(2)]).equal(batch.frames)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(frozen: Config, batch: Batch, precision: str) -> None:
    """In fp16 the first steps overflow and are left out, until the loss scale has come down."""
    frozen = changed(frozen, "optim.warmup_steps=1")
    part = batch.split(4)[0]
    full = _stage(frozen)
    half = _stage(changed(frozen, f"precision={precision}"))
    wanted, found = full.step(part), half.step(part)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted[name], rtol=0.05, atol=0.01)
    first = float(found["total"])
    for _ in range(10):
        found = half.step(part)
    assert float(found["total"]) < 0.9 * first
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert bool(half.state_dict()["scaler"]) == (precision == "fp16")


def test_overflowing_step_is_left_out(frozen: Config, batch: Batch) -> None:
    config = changed(frozen, "precision=fp16")
    model = DefVIS(config.model).train()
    stage = _stage(config, model)
    state = stage.state_dict()
    state["scaler"]["scale"] = 2.0**120
    stage.load_state_dict(state)
    before, rate = copy.deepcopy(model.state_dict()), stage.learning_rate
    stage.step(batch.split(4)[0])
    for name, weight in model.state_dict().items():
        assert weight.equal(before[name]), name
    assert stage.learning_rate == rate
    assert stage.state_dict()["scaler"]["scale"] == 2.0**119


def test_epochs_count_clips(frozen: Config) -> None:
    config = changed(frozen, "epochs=3", "batch_size=5")
    assert _stage(config, videos=24).steps == 15
    assert _stage(changed(config, "epochs=0"), videos=24).steps == config.steps


def test_refusals(frozen: Config) -> None:
    with pytest.raises(ValueError, match="accumulation must be at most batch_size, 4, got 5"):
        changed(frozen, "accumulation=5").check()
    with pytest.raises(ValueError, match=r"needs model\.dense_classes, or 0 steps"):
        changed(frozen, "model.dense_classes=false", "model.queries=slots").check()
    assert planned_stages(changed(frozen, "backbone_stage.steps=0")) == [JointStage]


def test_losses_that_are_not_finite_stop_the_run(frozen: Config, batch: Batch) -> None:
    model = DefVIS(frozen.model).train()
    stage = _stage(frozen, model)
    with torch.no_grad():
        next(model.mask_features.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss is not finite \(total nan, class "):
        stage.step(batch)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_that_are_not_finite_stop_the_run(
    frozen: Config, batch: Batch, precision: str
) -> None:
    """Before they reach the weights; in fp16 once the loss scale is down to nothing."""
    model = DefVIS(frozen.model).train()
    stage = _stage(changed(frozen, f"precision={precision}"), model)
    weight = model.decoder.queries.seed_content.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    part = batch.split(4)[0]
    if precision == "fp16":
        state = stage.state_dict()
        state["scaler"]["scale"] = 2.0**-23
        stage.load_state_dict(state)
        stage.step(part)
    with pytest.raises(FloatingPointError, match="gradients are not finite"):
        stage.step(part)
    for name, tensor in model.named_parameters():
        assert tensor.equal(before[name]), name
