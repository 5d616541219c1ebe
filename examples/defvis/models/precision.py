"""Autocast by the name of a precision."""

from __future__ import annotations

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which convolutions and matrix products are of `precision`; fp32 changes none."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")
