"""A stand-in for a device that this machine has not, such as "mps" or "xpu".

Its tensors say that they are on that device and have no memory that a kernel could read. PyTorch's
operators compute on tensors of the CPU behind them, so that results have the CPU's bits. What such
a device refuses is refused: float64, a tensor of the CPU that is no number, operators of others
than PyTorch, a copy that is made later; and, unless a test allows it, to hand numbers to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_COPIES = ("_to_copy", "copy_")
# What gives the host a number, or has a size that only the device knows.
_WAITING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")
_REFUSED = (torch.float64, torch.complex128)


class OtherDevice(TorchDispatchMode):
    """A context in which the device is there; tensors get there by `.to(device)`.

    PyTorch's own autocast leaves its tensors alone.

    Attributes:
        device: What its tensors have as their device.
        operators: The names of all operators that were called on it, such as "add.Tensor".
        readable: Whether numbers may leave the device.
        reads: How often some did.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device = torch.device(device_type, 0)
        self.operators: set[str] = set()
        self.readable = False
        self.reads = 0
        self._patch = pytest.MonkeyPatch()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Lets PyTorch call this without loading its compiler first."""
        return False

    def __enter__(self) -> OtherDevice:
        _OnDevice.home = self
        # PyTorch starts the device where something is made on it.
        for module in (torch.xpu, torch.cuda):
            self._patch.setattr(module, "_lazy_init", lambda: None)
        # PyTorch 2.6 asks before autocast.
        self._patch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: True)
        # These two make a tensor below all that a context sees.
        for name in ("tensor", "as_tensor"):
            self._patch.setattr(torch, name, _by_cpu(getattr(torch, name)))
        # A module that moves gets new parameters, as where memory is of another kind.
        self._patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.undo()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = op.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = kwargs.get("device")
        comes = target is not None and target.type in (self.device.type, "meta")
        if not comes and not any(isinstance(tensor, _OnDevice) for tensor in tensors):
            return op(*args, **kwargs)
        self.operators.add(op.name().removeprefix("aten::"))
        if op.namespace != "aten":
            raise NotImplementedError(f"{op} has no kernel for {self.device}")
        if name not in _COPIES and any(map(_is_array_of_cpu, tensors)):
            raise RuntimeError(f"{op}: all tensors must be on {self.device}, some are on the cpu")
        if kwargs.get("non_blocking"):
            raise RuntimeError(f"{op}: {self.device} would read memory that may be free by then")
        leaves = (
            target is not None
            if name == "_to_copy" and not comes
            else name == "copy_" and not isinstance(args[0], _OnDevice)
        )
        if leaves or name in _WAITING:
            if not self.readable:
                raise RuntimeError(f"{op} leaves {self.device}")
            self.reads += 1
        if comes:
            kwargs["device"] = torch.device("cpu")
        out = op(*tree_map(_behind, args), **tree_map(_behind, kwargs))
        if op._schema.is_mutable:
            return args[0]
        return out if leaves else tree_map(self._put, out)

    def _put(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.dtype in _REFUSED:
            raise TypeError(f"{self.device} has no {leaf.dtype}")
        return _OnDevice(leaf)


class _OnDevice(Tensor):
    """A tensor on the device; PyTorch's C++ takes it for one of the meta device."""

    home: ClassVar[OtherDevice]
    behind: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, behind: Tensor) -> _OnDevice:
        made: _OnDevice = torch.Tensor._make_wrapper_subclass(
            *(cls, behind.size(), behind.stride(), behind.storage_offset()),
            dtype=behind.dtype,
            device="meta",
        )
        made.behind = behind
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{op} without {cls.home.device}")

    device = property(lambda self: self.home.device)
    is_meta = property(lambda self: False)
    is_cuda = property(lambda self: self.home.device.type == "cuda")
    is_mps = property(lambda self: self.home.device.type == "mps")
    is_xpu = property(lambda self: self.home.device.type == "xpu")

    def tolist(self) -> Any:
        return self.cpu().tolist()


def _by_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *, device: torch.device | None = None, **options: Any) -> Tensor:
        tensor = make(data, **options)
        return tensor if device is None else tensor.to(device)

    return made


def _behind(leaf: Any) -> Any:
    return leaf.behind if isinstance(leaf, _OnDevice) else leaf


def _is_array_of_cpu(tensor: Tensor) -> bool:
    return tensor.dim() > 0 and not isinstance(tensor, _OnDevice)


def read(tensor: Tensor) -> Tensor:
    """The numbers of a tensor on the device, for a test to look at."""
    return cast(_OnDevice, tensor).behind.detach()
