"""Training on a device that is neither the CPU nor CUDA's, by a stand-in."""

from __future__ import annotations

import copy

import pytest
import torch

from defvis.config import Config
from defvis.data.clips import Batch, Clip, collate
from defvis.models import model as model_module
from defvis.models.device import wait_for
from defvis.models.model import DefVIS
from defvis.training.stages import ClipLosses
from stdeform import functional
from tests.examples.support import make_targets, square_masks
from tests.support.other_device import OtherDevice, read


def _batch() -> Batch:
    """Two clips, the second shorter and with fewer objects, so that all kinds of padding occur."""
    return collate(
        [
            Clip(
                torch.randn(frames, 3, 32, 32),
                make_targets(labels, [square_masks([True] * frames)] * len(labels), frames),
            )
            for frames, labels in ((4, [0, 2]), (3, [1]))
        ]
    )


@pytest.mark.parametrize("device_type", ["mps", "xpu"])
def test_losses_and_gradients(
    device_type: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the matching and what is selected by it are read from the device."""
    monkeypatch.setattr(functional, "_warned", {device_type})
    # The CPU's layout is its own, and adds up in another order.
    monkeypatch.setattr(model_module, "_channels_last", lambda frames: frames)
    model = DefVIS(config.model).train()
    losses = ClipLosses(copy.deepcopy(model), config)
    batch = _batch()
    want = losses(batch)
    want["total"].backward()
    with OtherDevice(device_type) as device:
        device.readable = True
        there = ClipLosses(model.to(device.device), config)
        got = there(batch.to(device.device))
        got["total"].backward()
    for name, loss in want.items():
        torch.testing.assert_close(read(got[name]), loss.detach(), rtol=1e-6, atol=1e-7)
    for one, other in zip(there.parameters(), losses.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            # Rounding: sums are formed in another order. 1.5e-6 of the largest was the most.
            atol = 2e-6 * float(other.grad.abs().max())
            torch.testing.assert_close(read(one.grad), other.grad, rtol=0, atol=atol)


def test_every_device_but_the_cpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    devices = [torch.device(name) for name in ("cpu", "mps", "cuda:1")]
    for device in devices:
        wait_for(device)
    assert waited == devices[1:]
