"""The two stages of training: the backbone on single frames, then the whole model on clips."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from defvis.config import Config
from defvis.data.clips import Batch
from defvis.models.model import DefVIS
from defvis.models.precision import autocast
from defvis.training.distributed import World
from defvis.training.losses import compute_losses, dense_loss
from defvis.training.matcher import match, matched_slots
from defvis.training.optim import WeightAverage, build_optimizer, build_schedule
from defvis.training.sharding import load_whole_optimizer, whole

# Far below what a training that works comes down to, from 2^16; the smallest fp16 number.
_LEAST_SCALE = 2.0**-24


class Stage:
    """Optimiser, schedule and losses of a stage.

    Args:
        losses: Maps a part of a batch and that batch to the part's losses, "total" to be
            differentiated.
        optimizer: Of the weights that learn.
        schedule: Of its rates.
        config: All numbers.
        world: The processes that train together.

    Attributes:
        name: For log and checkpoints.
        steps: Optimiser steps.
        batch_size: Clips per step in each process.
        num_frames: Frames per clip.
        unit: What a step takes several of: "clips", or "frames" if a clip is one frame.
        validates: True if the whole model can be validated in this stage.
        losses: As above.
        optimizer: As above.
    """

    name: str
    steps: int
    batch_size: int
    num_frames: int
    unit: str
    validates: bool

    def __init__(
        self,
        losses: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        config: Config,
        world: World,
    ) -> None:
        self.losses, self.optimizer, self._schedule = losses, optimizer, schedule
        self._clip_norm, self._parts = config.optim.clip_norm, config.accumulation
        # In fp16 small gradients vanish unless the loss is scaled up before.
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")

    @property
    def model(self) -> DefVIS:
        """The model to validate with."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """The present rate of the group that learns fastest."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; returns the losses.

        With `accumulation` the losses of the parts, all divided by the numbers of the whole batch,
        are added up.

        Raises:
            FloatingPointError: If the loss or a gradient is not finite. In fp16 a step with such
                a gradient is left out instead, until no loss scale is small enough.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        parts = batch.split(self._parts)
        for number, part in enumerate(parts, start=1):
            with self._synchronised(number == len(parts)):
                found = self.losses(part, batch)
                if not found["total"].isfinite():
                    named = (f"{name} {float(loss.detach()):g}" for name, loss in found.items())
                    raise FloatingPointError(f"the loss is not finite ({', '.join(named)})")
                self._scaler.scale(found["total"]).backward()
            for name, loss in found.items():
                losses[name] = losses.get(name, 0) + loss.detach()
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        # Clipped, a gradient that is not finite turns every weight into NaN.
        if not self._scaler.is_enabled() and not whole(norm).isfinite():
            raise FloatingPointError("the gradients are not finite, though the loss is")
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        # The scale is smaller if gradients overflowed and the step was skipped.
        if self._scaler.get_scale() >= scale:
            self._schedule.step()
        elif self._scaler.get_scale() < _LEAST_SCALE:
            raise FloatingPointError("the gradients are not finite at any loss scale")
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, schedule and loss scale."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`.

        The learning rates are those of this stage's schedule at the step, which is another if its
        number of steps is.
        """
        load_whole_optimizer(self.optimizer, state["optimizer"])
        schedule = self._schedule
        schedule.load_state_dict(state["schedule"])
        for group, rate, factor in zip(
            self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = rate * factor(schedule.last_epoch)
        self._scaler.load_state_dict(state["scaler"])

    def _synchronised(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over processes once per step, with its last part."""
        if is_last or not isinstance(self.losses, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.losses.no_sync()


class BackboneStage(Stage):
    """Backbone, projection and cell classifier alone, on single frames of many clips.

    A step of the joint stage sees a dozen objects, one of this stage several dozen, without any
    other loss. It replaces the ImageNet weights of the paper for a backbone without weights.
    """

    name = "backbone"
    num_frames = 1
    unit = "frames"
    validates = False

    def __init__(
        self,
        model: DefVIS,
        config: Config,
        num_videos: int,
        world: World,
        leaves_some_unused: bool = False,
    ) -> None:
        stage = config.backbone_stage
        self.steps, self.batch_size = stage.steps, stage.frames_per_step
        self._model = model
        assert model.backbone_classes is not None  # As `Config.check` made sure.
        modules = (model.backbone, model.project, model.backbone_classes)
        optimizer = torch.optim.AdamW(
            [parameter for module in modules for parameter in module.parameters()],
            lr=stage.learning_rate,
            weight_decay=config.optim.weight_decay,
            fused=True,
        )
        schedule = build_schedule(
            optimizer,
            self.steps,
            replace(config.optim, schedule="cosine", warmup_steps=stage.warmup_steps),
        )
        losses = world.wrap(_FrameLosses(model, config), leaves_some_unused=True)
        super().__init__(losses, optimizer, schedule, config, world)

    @property
    def model(self) -> DefVIS:
        """The trained model itself."""
        return self._model


class JointStage(Stage):
    """Everything, on clips, with averaged weights for validation."""

    name = "joint"
    unit = "clips"
    validates = True

    def __init__(
        self,
        model: DefVIS,
        config: Config,
        num_videos: int,
        world: World,
        leaves_some_unused: bool = False,
    ) -> None:
        self.batch_size, self.num_frames = config.batch_size, config.model.num_frames
        self.steps = joint_steps(config, num_videos, world.size)
        self._model = model
        optim = config.optim
        self._average = WeightAverage(model, optim.ema_decay) if optim.ema_decay else None
        optimizer = build_optimizer(model, optim)
        schedule = build_schedule(optimizer, self.steps, optim)
        losses = world.wrap(ClipLosses(model, config), leaves_some_unused)
        super().__init__(losses, optimizer, schedule, config, world)

    @property
    def model(self) -> DefVIS:
        """The averaged model where there is one."""
        return self._model if self._average is None else self._average.model

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step, then one of the average."""
        losses = super().step(batch)
        if self._average is not None:
            self._average.update(self._model)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, schedule, loss scale and average."""
        average = None if self._average is None else self._average.state_dict()
        return {**super().state_dict(), "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        super().load_state_dict(state)
        if self._average is not None:
            self._average.load_state_dict(state["average"])


class _FrameLosses(nn.Module):
    """The dense class loss on backbone cells."""

    def __init__(self, model: DefVIS, config: Config) -> None:
        super().__init__()
        self.model, self._config = model, config

    def forward(self, batch: Batch, whole: Batch) -> dict[str, Tensor]:
        with autocast(batch.frames.device, self._config.precision):
            logits = self.model.classify_frames(batch.frames[:, 0])[:, None]
        loss = dense_loss(logits, batch, self._config.loss, whole)
        return {"total": loss, "dense": loss.detach()}


class ClipLosses(nn.Module):
    """A forward pass with its losses, which are computed in fp32 in every precision."""

    def __init__(self, model: DefVIS, config: Config) -> None:
        super().__init__()
        self.model, self._config = model, config

    def forward(self, batch: Batch, whole: Batch | None = None) -> dict[str, Tensor]:
        """Computes the losses of a batch, or of a part of `whole`; see `compute_losses`."""
        device, precision = batch.frames.device, self._config.precision
        with autocast(device, precision):
            outputs = self.model(batch.frames, batch.padding_mask)
        matches = match(outputs, batch.targets, self._config.loss)
        with autocast(device, precision):
            masks = self.model.predict_masks(outputs, *matched_slots(matches[-1]))
        return compute_losses(outputs, masks, matches, batch, self._config.loss, whole)


def planned_stages(config: Config) -> list[type[BackboneStage] | type[JointStage]]:
    """The stages of a run, in order."""
    return [BackboneStage, JointStage] if config.backbone_stage.steps else [JointStage]


def joint_steps(config: Config, num_videos: int, processes: int) -> int:
    """Optimiser steps of the joint stage."""
    clips = config.epochs * num_videos
    return -(-clips // (config.batch_size * processes)) if clips else config.steps
