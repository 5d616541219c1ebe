"""The host's time for a CUDA forward of four elements, without a GPU: the Python around the launch.

The CUDA branch runs on tensors of the CPU, with a native call that does nothing and a stream that
is always the same. A GPU adds the launch, and an allocator that is somewhat slower.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

import stdeform
from benchmarks.measure.stats import spread
from benchmarks.measure.timing import CpuClock, Task, interleave
from stdeform import _native, functional
from stdeform.testing import make_problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--rounds", type=int, default=500, help="of two milliseconds each")


def run(options: argparse.Namespace) -> int:
    """Times the fused form with gradients disabled, and enabled but not requested."""
    problem = make_problem(
        [(1, 1, 1)], batch=1, num_queries=1, num_heads=1, head_dim=4, num_points=1
    )
    inputs = problem.from_offsets

    def attend() -> Tensor:
        return stdeform.st_deform_attn_from_offsets(*inputs)

    with on_cuda(lambda *arguments: None):
        for name, switch in (("off", torch.no_grad), ("on", torch.enable_grad)):
            with switch():
                # Short rounds: some find the processor to themselves, however busy it is.
                clock = CpuClock(block_seconds=2e-3)
                samples = interleave([Task(name, attend)], clock, rounds=options.rounds)
                rounds = samples[name]["seconds"]
            times = spread(rounds)
            print(
                f"gradients switched {name}: {times.median * 1e6:.1f} us a call "
                f"[{times.q1 * 1e6:.1f}, {times.q3 * 1e6:.1f}], least {min(rounds) * 1e6:.1f}"
            )
    return 0


@contextlib.contextmanager
def on_cuda(forward: Callable[..., None]) -> Iterator[None]:
    """Lets the library take tensors of the CPU for those of a CUDA device meanwhile.

    Args:
        forward: Is called in place of the native core's function, with its arguments.
    """
    core = SimpleNamespace(cuda_forward=forward, cuda_devices=lambda: (1, ""))
    device_type = functional._device_type

    def asked_device_type(tensor: Tensor) -> str:
        device_type(tensor)  # takes the time that it takes
        return "cuda"

    with contextlib.ExitStack() as stack:
        # Plain attributes, as fast to read as what they hide.
        for owner, name, value in (
            (_native, "_C", core),
            (functional, "_device_type", asked_device_type),
            (Tensor, "is_cuda", True),
            (Tensor, "is_cpu", False),
            (torch._C, "_cuda_getCurrentRawStream", abs),  # of -1, the index of the CPU
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        _native._missing_cuda.cache_clear()
        stack.callback(_native._missing_cuda.cache_clear)
        yield
