"""Where a model computes."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """The device of that name, "" for the first GPU or, without one, the CPU.

    Raises:
        ValueError: If it cannot compute.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        if reason.startswith("Expected one of"):  # PyTorch lists two dozen.
            reason = "use cpu, cuda or cuda:0"
        raise ValueError(f"--device {name} cannot be used: {reason}") from error
    return device


def wait_for(device: torch.device) -> None:
    """Waits until a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
