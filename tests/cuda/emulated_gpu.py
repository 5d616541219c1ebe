"""An emulated GPU: the library's CUDA branch on tensors of the CPU, its kernels emulated.

For `stdeform` every tensor is then on a CUDA device; for PyTorch all are on the CPU. The
native core is built from the same bindings and kernels as for a GPU, with the emulator of
tests/cuda/emulator/ in place of nvcc. What `torch.cuda` offers is as much of it as the tests use.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import itertools
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stdeform import _native, functional
from tests.cuda.emulator import build, emulated
from tests.cuda.emulator.emulator import Emulator, Launch, Schedule

HAS_GPU = torch.cuda.is_available() and not _native.missing("cuda")
DEVICE = "cuda" if HAS_GPU else "cpu"  # where tests of the CUDA branch put their tensors


def only_a_gpu_shows(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test without a GPU too, but reports it as skipped: its point needs a GPU."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            test(*args, **kwargs)
            if not HAS_GPU:
                pytest.skip(f"only a GPU shows {what}; all else of the test holds without one")

        return run

    return decorate


class EmulatedGpu:
    """An emulated GPU.

    Attributes:
        device: The device on which stdeform finds tensors; there are two.
        stream: The current one.
    """

    def __init__(self, core: types.ModuleType) -> None:
        self.emulator = Emulator(Path(str(core.__file__)))
        # As on a GPU, another order in each launch, so that sums differ in their last bits.
        self.emulator.set_schedule(Schedule("random"))
        self.core = types.SimpleNamespace(**vars(core))
        for name, function in vars(core).items():
            if name.startswith("cuda_") and name != "cuda_devices":
                setattr(self.core, name, self._checked(function))
        self.device = 0
        self.stream = Stream()
        self._modes = contextlib.ExitStack()
        self._live: Any = None

    def take_launches(self) -> list[Launch]:
        """The kernels that were launched since they were last taken."""
        return self.emulator.take_launches()

    def _checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                return function(*args)
            finally:
                self.emulator.check()

        return call

    # -- what takes the place of PyTorch's ------------------------------------------------------

    def current_raw_stream(self, index: int) -> int:
        """Of `torch._C._cuda_getCurrentRawStream`."""
        assert index == self.device
        return self.stream.cuda_stream

    @contextlib.contextmanager
    def use_stream(self, stream: Stream) -> Iterator[None]:
        """Of `torch.cuda.stream`."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def set_sync_debug_mode(self, mode: str) -> None:
        """Sets first and then warns, as PyTorch does; refuses to read numbers off the device."""
        self._modes.close()
        if mode == "error":
            self._modes.enter_context(_NothingWaits())
            warnings.warn(
                "Synchronization debug mode is a prototype feature and does not yet detect all "
                "synchronizing operations",
                stacklevel=2,
            )

    def reset_peak_memory_stats(self) -> None:
        """Counts the bytes of living tensors from here to `max_memory_allocated`."""
        from defvis.training.memory import LiveStorages

        self._live = self._modes.enter_context(LiveStorages())

    def max_memory_allocated(self) -> int:
        """The most bytes since `reset_peak_memory_stats`."""
        self._modes.close()
        return int(self._live.peak)

    def close(self) -> None:
        """Ends modes that a test has left; they would reach the next one."""
        self._modes.close()


class Stream:
    """A handle; all work is done when the call returns, so that there is nothing to wait for."""

    _handles = itertools.count(0x1000)

    def __init__(self) -> None:
        self.cuda_stream = next(Stream._handles)

    def wait_stream(self, other: Stream) -> None:
        """Waits for nothing."""


class Graph(TorchDispatchMode):
    """Keeps PyTorch's operators as they are called, and calls them again on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        self._calls.append((op, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Results of the capture get new numbers."""
        for op, args, kwargs, out in self._calls:
            for old, new in zip(tree_leaves(out), tree_leaves(op(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _NothingWaits(TorchDispatchMode):
    """Refuses operators with a number as result, or with a size that only the device knows."""

    _waiting = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "_to_copy")

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        if name in self._waiting and not (name == "_to_copy" and "device" not in (kwargs or {})):
            raise RuntimeError(f"called a synchronizing CUDA operation: {op}")
        return op(*args, **(kwargs or {}))


@contextlib.contextmanager
def installed() -> Iterator[EmulatedGpu]:
    """Installs an emulated GPU for as long as the context lasts.

    Raises:
        FileNotFoundError: There is no C++ compiler, or there are no CUDA headers.
    """
    gpu = EmulatedGpu(_emulated_core())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "_C", gpu.core)
        patch.setattr(functional, "_device_type", lambda tensor: "cuda")
        # PyTorch's own questions get its own answers.
        patch.setattr(Tensor, "is_cuda", property(lambda tensor: _asked_by_stdeform(tensor)))
        patch.setattr(
            Tensor,
            "get_device",
            lambda tensor: (
                gpu.device if _asked_by_stdeform(tensor) else torch._C.TensorBase.get_device(tensor)
            ),
        )
        patch.setattr(torch._C, "_cuda_getCurrentRawStream", gpu.current_raw_stream, raising=False)
        for name, substitute in {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "_sleep": lambda cycles: None,
            "current_stream": lambda: gpu.stream,
            "graph": lambda graph: graph,
            "max_memory_allocated": gpu.max_memory_allocated,
            "memory_allocated": lambda: 0,
            "reset_peak_memory_stats": gpu.reset_peak_memory_stats,
            "set_sync_debug_mode": gpu.set_sync_debug_mode,
            "stream": gpu.use_stream,
            "synchronize": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, substitute)
        _native._missing_cuda.cache_clear()
        with contextlib.closing(gpu):
            yield gpu
    _native._missing_cuda.cache_clear()


def _asked_by_stdeform(tensor: Tensor) -> bool:
    asker = sys._getframe(2).f_globals.get("__name__", "")
    return asker.startswith("stdeform.") or torch._C.TensorBase.is_cuda.__get__(tensor)


@functools.cache
def _emulated_core() -> types.ModuleType:
    """`stdeform._C` with CUDA, as setup.py builds it, but with the emulator."""
    source = build.ROOT / "csrc"
    cpu = [path for path in sorted(source.glob("cpu/**/*.cpp")) if "_avx" not in path.stem]
    pybind11 = Path(torch.__file__).parent / "include"  # PyTorch contains its headers
    path = build.extension(
        emulated.sources(),
        [source / "bindings.cpp", *cpu, source / "cuda" / "device.cu"],
        [
            *("-isystem", sysconfig.get_path("include"), "-isystem", str(pybind11)),
            *("-DSTDEFORM_WITH_CUDA=1", "-DSTDEFORM_ISA_PORTABLE=1"),
            "-D__CUDA_ARCH_LIST__=900",  # of the emulated device
        ],
    )
    # Under the real one's name, the real one would be found.
    loader = importlib.machinery.ExtensionFileLoader("emulated._C", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    core = importlib.util.module_from_spec(spec)
    loader.exec_module(core)
    return core
