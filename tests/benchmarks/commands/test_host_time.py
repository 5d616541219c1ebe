"""The host's time for a CUDA call: that the CUDA branch is what is timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stdeform
from benchmarks.__main__ import main
from benchmarks.commands import host_time
from stdeform import _native
from tests.support.cases import draw


def test_the_cuda_branch_is_taken() -> None:
    calls: list[tuple[Any, ...]] = []
    core = _native._C
    with host_time.on_cuda(lambda *arguments: calls.append(arguments)), torch.no_grad():
        stdeform.st_deform_attn_from_offsets(*draw("points").from_offsets)
    assert len(calls) == 1
    assert calls[0][:2] == (-1, 1)  # the device's index and the stream
    assert _native._C is core
    assert not torch.ones(1).is_cuda


def test_times_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host-time", "--rounds", "2"]) == 0
    off, on = capsys.readouterr().out.splitlines()
    assert off.startswith("gradients switched off: ")
    assert on.startswith("gradients switched on: ")
