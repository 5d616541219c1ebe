"""What test_sharding.py runs in two processes: a model shared out beside one that is copied.

    torchrun --nproc-per-node 2 sharded_steps.py DATA

All assertions are made in both processes.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defvis.config import Config, DataConfig
from defvis.data.clips import Batch, ClipDataset, FrameCache, Targets, collate
from defvis.data.ytvis import find_files, load
from defvis.models.model import DefVIS
from defvis.training.distributed import World, join
from defvis.training.sharding import in_step, local, whole
from defvis.training.stages import JointStage
from tests.examples.support import changed, tiny_model

VARIANTS = {
    "accumulation": ["accumulation=2"],
    "levels": [
        "model.levels=2", "model.coarser_points=3",
        'model.backbone.out_features=["stem", "stage1", "stage2"]',
    ],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
    "frozen stem": [
        "model.backbone.frozen_stages=1", "model.dense_classes=false", "model.queries=slots",
    ],
    "vistr, recomputed": [
        "model.mask_head=vistr", "model.queries=free", "model.refine_boxes=false",
        "model.class_output=softmax", "model.encoder_attention=frames",
        "model.decoder_attention=dense", "model.checkpointing=true", "loss.mask_chunk=2",
        "optim.ema_decay=0.0",
    ],
}  # fmt: skip


def main(data: Path) -> None:
    """Runs all checks."""
    videos = load(*find_files(data / "train"))
    clips = ClipDataset(videos, 4, DataConfig(paste=0), 0, FrameCache(1))
    config = changed(
        Config(model=tiny_model()), "model.num_classes=10", "batch_size=2",
        "model.backbone.frozen_norm=true", "optim.warmup_steps=1",
    )  # fmt: skip
    with join("cpu") as copies:
        shards = dataclasses.replace(copies, shards=True)
        batches = [collate([clips[step, 2 * copies.rank + i] for i in (0, 1)]) for step in range(3)]
        if copies.rank == 1:  # Without an object the mask head has nothing to do.
            batches[1].targets[:] = map(_without_objects, batches[1].targets)
        for name, settings in VARIANTS.items():
            variant = changed(config, *settings)
            pair = _stage(variant, copies), _stage(variant, shards)
            for batch in batches:
                losses = [stage.step(batch) for stage in pair]
                assert losses[0].keys() == losses[1].keys() >= {"mask", "dice"}, name
                for kind, loss in losses[0].items():
                    torch.testing.assert_close(losses[1][kind], loss, msg=f"{name}: {kind}")
            _assert_equal(*pair, name)
        _check_shares(config, shards, batches[0])
        _check_validation(config, copies, shards, batches)
        _check_overflow(dataclasses.replace(config, precision="fp16"), shards, batches[0])
        print("all checks passed", flush=True)


def _without_objects(targets: Targets) -> Targets:
    return Targets(*(getattr(targets, field.name)[:0] for field in dataclasses.fields(targets)))


def _stage(config: Config, world: World) -> JointStage:
    torch.manual_seed(0)
    return JointStage(world.place(DefVIS(config.model)).train(), config, 24, world)


def _assert_equal(copied: JointStage, shared: JointStage, name: str) -> None:
    """To rounding: Adam's means, which say what gradients were, and the scaler's state."""
    # What differs in its last bit in float32 may be rounded up to bfloat16 for one and down for the
    # other: by a unit in the last place of eight bits, at most 2^-7 of the number.
    rounding = 2**-7 if name == "bf16" else 2e-4
    wanted, found = copied.state_dict(), whole(shared.state_dict())
    assert found["scaler"] == wanted["scaler"], name
    assert found["schedule"] == wanted["schedule"], name
    states = (state["optimizer"]["state"] for state in (wanted, found))
    for first, second in zip(*(state.values() for state in states), strict=True):
        difference = (first["exp_avg"] - second["exp_avg"]).abs().max()
        assert difference <= rounding * first["exp_avg"].abs().max() + 1e-6, name


def _check_shares(config: Config, shards: World, batch: Batch) -> None:
    """Each process holds about half of weights, gradients, Adam's means and the average."""
    model = shards.place(DefVIS(config.model)).train()
    stage = JointStage(model, config, 24, shards)
    stage.step(batch)
    sizes = [p.numel() for p in model.parameters()]
    held: dict[str, list[Tensor]] = {
        "weights": list(model.parameters()),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "average": list(stage.model.parameters()),
    }
    moments = stage.optimizer.state.values()
    for key in ("exp_avg", "exp_avg_sq"):
        held[key] = [moment[key] for moment in moments]
    for name, tensors in held.items():
        assert len(tensors) == len(sizes), name
        own = sum(local(tensor.detach()).numel() for tensor in tensors)
        assert 0.4 * sum(sizes) < own < 0.6 * sum(sizes), (name, own, sum(sizes))
        # Nor does a share keep the whole in memory.
        stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4
                  for t in (local(tensor.detach()) for tensor in tensors)}  # fmt: skip
        assert sum(stored.values()) < 0.75 * sum(sizes), (name, stored)
    stage.load_state_dict(copy.deepcopy(whole(stage.state_dict())))
    restored = [local(moment["exp_avg"]) for moment in stage.optimizer.state.values()]
    assert sum(t.untyped_storage().nbytes() // 4 for t in restored) < 0.75 * sum(sizes)


def _check_validation(config: Config, copies: World, shards: World, batches: list[Batch]) -> None:
    """Processes may validate other numbers of clips, and see the average's present weights."""
    copied, shared = _stage(config, copies), _stage(config, shards)
    for batch in batches:
        for stage in (copied, shared):
            stage.step(batch)
        with in_step(shared.model), torch.no_grad():
            for _ in range((0, 3)[copies.rank]):
                slots = torch.arange(3).expand(2, -1)
                wanted, found = (
                    (outputs := stage.model(batch.frames)).boxes.clone()
                    + stage.model.predict_masks(outputs, slots).sum()
                    for stage in (copied, shared)
                )
                # After Adam's steps; rounding may decide their direction: see OF_A_STEP in
                # test_distributed.py.
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def _check_overflow(config: Config, shards: World, batch: Batch) -> None:
    """One process's share of the gradients overflows: all leave the step out."""
    stage = _stage(config, shards)
    scaler: Any = stage._scaler
    unscale = scaler.unscale_

    def spoil(optimizer: torch.optim.Optimizer) -> None:
        if shards.rank == 1:
            gradient = optimizer.param_groups[0]["params"][0].grad
            local(gradient).fill_(float("inf"))
        unscale(optimizer)

    scaler.unscale_ = spoil
    model, scale = next(stage.losses.children()), scaler.get_scale()
    before = copy.deepcopy(whole(model.state_dict()))
    stage.step(batch)
    for name, weight in whole(model.state_dict()).items():
        assert weight.equal(before[name]), name
    assert scaler.get_scale() == scale / 2


if __name__ == "__main__":
    warnings.simplefilter("error")
    # DDP lays out the gradients of 1 x 1 convolutions otherwise than autograd: slower, not wrong.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    main(Path(sys.argv[1]))
