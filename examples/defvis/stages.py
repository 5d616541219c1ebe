"""The two stages of training: the backbone on single frames, then the whole model on clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defvis.config import Config
from defvis.data.clips import Batch
from defvis.losses import compute_losses, dense_loss
from defvis.model import DefVIS
from defvis.optim import WeightAverage, build_optimizer, build_schedule


class Stage:
    """Optimiser, schedule and losses of a stage.

    Attributes:
        name: For log and checkpoints.
        steps: Optimiser steps.
        batch_size: Clips per step.
        num_frames: Frames per clip.
        validates: True if the whole model can be validated in this stage.
    """

    name: str
    steps: int
    batch_size: int
    num_frames: int
    validates: bool

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int,
        final_fraction: float,
        clip_norm: float,
    ) -> None:
        self._optimizer = optimizer
        self._schedule = build_schedule(optimizer, self.steps, warmup_steps, final_fraction)
        self._clip_norm = clip_norm

    @property
    def model(self) -> DefVIS:
        """The model to validate with."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """The present rate of the group that learns fastest."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch, "total" to be differentiated."""
        raise NotImplementedError

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; returns the losses.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        losses = self.losses(batch)
        if not losses["total"].isfinite():
            named = {name: float(loss) for name, loss in losses.items()}
            raise FloatingPointError(
                f"the {self.name} stage has a loss that is not finite: {named}"
            )
        self._optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self._optimizer.step()
        self._schedule.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and schedule."""
        return {"optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])


class BackboneStage(Stage):
    """Backbone, projection and cell classifier alone, on single frames of many clips.

    A step of the joint stage sees a dozen objects, one of this stage several dozen, and no other
    loss competes. It stands for the ImageNet start of the paper, for a backbone without weights.
    """

    name = "backbone"
    num_frames = 1
    validates = False

    def __init__(self, model: DefVIS, config: Config) -> None:
        stage = config.backbone_stage
        self.steps, self.batch_size = stage.steps, stage.frames_per_step
        self._model, self._config = model, config
        modules = (model.backbone, model.project, model.backbone_classes)
        optimizer = torch.optim.AdamW(
            [parameter for module in modules for parameter in module.parameters()],
            lr=stage.learning_rate,
            weight_decay=config.optim.weight_decay,
            fused=True,
        )
        super().__init__(
            optimizer, stage.warmup_steps, config.optim.final_fraction, config.optim.clip_norm
        )

    @property
    def model(self) -> DefVIS:
        """The trained model itself."""
        return self._model

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The dense class loss on backbone cells."""
        logits = self._model.classify_frames(batch.frames[:, 0])[:, None]
        loss = dense_loss(logits, batch, self._config.loss)
        return {"total": loss, "dense": loss.detach()}


class JointStage(Stage):
    """Everything, on clips, with averaged weights for validation."""

    name = "joint"
    validates = True

    def __init__(self, model: DefVIS, config: Config) -> None:
        self.steps, self.batch_size = config.steps, config.batch_size
        self.num_frames = config.model.num_frames
        self._model, self._config = model, config
        optim = config.optim
        self._average = WeightAverage(model, optim.ema_decay) if optim.ema_decay else None
        super().__init__(
            build_optimizer(model, optim), optim.warmup_steps, optim.final_fraction, optim.clip_norm
        )

    @property
    def model(self) -> DefVIS:
        """The averaged model where there is one."""
        return self._model if self._average is None else self._average.model

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """All losses of `compute_losses`."""
        outputs = self._model(batch.frames, batch.padding_mask)
        return compute_losses(outputs, batch, self._model.predict_masks, self._config.loss)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step, then one of the average."""
        losses = super().step(batch)
        if self._average is not None:
            self._average.update(self._model)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, schedule and average."""
        average = None if self._average is None else self._average.state_dict()
        return {**super().state_dict(), "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        super().load_state_dict(state)
        if self._average is not None:
            self._average.load_state_dict(state["average"])


STAGES: tuple[type[BackboneStage] | type[JointStage], ...] = (BackboneStage, JointStage)
