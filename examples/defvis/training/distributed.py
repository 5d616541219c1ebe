"""Training in several processes (torchrun), or in a single one with the same code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from defvis.models.device import find_device
from defvis.models.model import DefVIS
from defvis.training.sharding import shard

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that train one model together, each on its own clips.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        device: Where this process computes.
        shards: The model is split over them, instead of a copy for each; needs several.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shards: bool = False

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and shows progress."""
        return self.rank == 0

    def place(self, model: DefVIS) -> DefVIS:
        """Puts the model, or this process's shard of it, on the device."""
        if not self.shards:
            return model.to(self.device)
        shard(model, init_device_mesh(self.device.type, (self.size,)))
        return model

    def wrap(self, module: nn.Module, leaves_some_unused: bool = False) -> nn.Module:
        """Averages gradients over the processes from now on.

        Args:
            module: Its forward pass must compute the whole loss.
            leaves_some_unused: True if some weights take no part in it.
        """
        if self.size == 1 or self.shards:  # FSDP does it itself.
            return module
        return DistributedDataParallel(module, find_unused_parameters=leaves_some_unused)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in all processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def equalise(self, module: nn.Module) -> None:
        """Gives all processes the first one's weights and buffers."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                if not isinstance(tensor, DTensor):
                    distributed.broadcast(tensor, 0)


@contextmanager
def join(device: str = "", shards: bool = False) -> Iterator[World]:
    """Joins the processes that torchrun started; without torchrun there is one.

    Args:
        device: "cpu" or "cuda", or for a single process any device; empty takes CUDA where there
            is some. Processes on CUDA take one device each and use NCCL, others gloo.
        shards: The model is split over the processes.

    Raises:
        ValueError: If the device cannot be used, torchrun's variables are incomplete or no such
            numbers, or the model is to be split over a single process.
        ConnectionError: If the processes do not find each other.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, size, local_rank = _numbers(needs_local=device == "cuda")
    if shards and size < 2:
        raise ValueError(f"--shard needs at least 2 processes, started by torchrun, got {size}")
    own = find_device(f"cuda:{local_rank}" if device == "cuda" and "RANK" in os.environ else device)
    if "RANK" not in os.environ:
        yield World(device=own, shards=shards)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(
            f"process {rank} of {size} cannot join the others: {reason}"
        ) from error
    try:
        yield World(rank, size, own, shards)
    finally:
        distributed.destroy_process_group()


def _numbers(needs_local: bool) -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, from torchrun's variables."""
    given = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ]
    if not given:
        return 0, 1, 0
    needed = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *["LOCAL_RANK"] * needs_local]
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise ValueError(
            f"the environment has {given[0]} but no {missing[0]}: start several processes with "
            f"torchrun, or for a single one unset {', '.join(given)}"
        )
    numbers = {name: os.environ[name] for name in (*given, "MASTER_PORT")}
    for name, text in numbers.items():
        if not (text.isascii() and text.isdecimal()):
            raise ValueError(f"{name} in the environment must be a whole number, got {text!r}")
    rank, size = int(numbers["RANK"]), int(numbers["WORLD_SIZE"])
    if rank >= size:
        raise ValueError(f"RANK in the environment must be below WORLD_SIZE, {size}, got {rank}")
    return rank, size, int(numbers.get("LOCAL_RANK", "0"))
