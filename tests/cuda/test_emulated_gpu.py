"""The emulated GPU runs the CUDA branch, and sees what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stdeform
from stdeform import _native, functional
from tests.cuda import emulated_gpu
from tests.cuda.emulated_gpu import EmulatedGpu
from tests.support.cases import arguments, asking, draw, tensors

pytestmark = pytest.mark.skipif(emulated_gpu.HAS_GPU, reason="there is a GPU")


def _run() -> tuple[Tensor, ...]:
    """The result and all gradients, of many samples per cell."""
    problem = draw("points", num_queries=97)
    args = asking(arguments(problem, "points"), (True,) * 4)
    out = stdeform.st_deform_attn_from_offsets(*args, backend="native")
    return out, *torch.autograd.grad(out, tensors(args), problem.grad_out)


def test_calls_reach_the_current_stream_of_the_device_of_their_tensors(gpu: EmulatedGpu) -> None:
    gpu.device = 1
    gpu.take_launches()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _run()
    launches = gpu.take_launches()
    assert {launch.stream for launch in launches} == {stream.cuda_stream}
    assert {launch.device for launch in launches} == {1}
    _run()
    assert {launch.stream for launch in gpu.take_launches()} == {gpu.stream.cuda_stream}


def test_sums_come_in_another_order_each_time(gpu: EmulatedGpu) -> None:
    (out, value, *others), (same, summed_again, *again) = _run(), _run()
    assert all(map(torch.equal, (out, *others), (same, *again)))
    assert not torch.equal(value, summed_again)


def test_errors_name_the_device(gpu: EmulatedGpu) -> None:
    gpu.device = 7
    with pytest.raises(RuntimeError, match="st_deform_attn failed on CUDA device 7: invalid dev"):
        _run()


def test_pytorch_sees_tensors_of_the_cpu(gpu: EmulatedGpu) -> None:
    out, *_ = _run()
    assert not out.is_cuda
    assert out.get_device() == -1


def test_waiting_is_refused(gpu: EmulatedGpu) -> None:
    ones = torch.ones(3)
    with pytest.warns(UserWarning, match="Synchronization debug mode"):
        torch.cuda.set_sync_debug_mode("error")
    for wait in (lambda: ones[0].item(), ones.nonzero, lambda: torch.equal(ones, ones)):
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            wait()
    torch.cuda.set_sync_debug_mode("default")
    assert ones[0].item() == 1


def test_all_is_put_back(needs_emulator: None) -> None:
    def seen() -> tuple[object, ...]:
        return (
            *(_native._C, _native.missing("cuda"), functional._device_type),
            *(dict(vars(torch.cuda)), "is_cuda" in vars(Tensor), "get_device" in vars(Tensor)),
        )

    before = seen()
    with emulated_gpu.installed():
        assert _native.missing("cuda") is None
        assert all(one != other for one, other in zip(before, seen(), strict=True))
    assert seen() == before
