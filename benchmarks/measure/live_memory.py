"""Bytes of tensors that are alive at a time in a call, in all and while parts of a model run.

Weights and inputs, which are there before, and scratch of kernels are no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PartMemory:
    """Of the forward pass of one part.

    Attributes:
        peak: Most bytes alive at a time while it runs, less those alive before.
        kept: Alive after it, likewise: its result, and in training what its backward needs. Of a
            part that runs several times the sum.
    """

    peak: int = 0
    kept: int = 0


def measure(
    call: Callable[[], object], parts: Mapping[str, Sequence[nn.Module]]
) -> tuple[int, dict[str, PartMemory]]:
    """The peak of a call, and by name what each part of a model adds that ran in it.

    Args:
        call: What is run, once.
        parts: Modules by the name of their part; none holds another.
    """
    from defvis.training.memory import LiveStorages

    peak, found = 0, dict.fromkeys(parts, PartMemory())
    before: list[int] = []
    live = LiveStorages()

    def begin(*_: Any) -> None:
        nonlocal peak
        peak = max(peak, live.peak)
        before.append(live.bytes)
        live.peak = live.bytes

    def end(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            start, known = before.pop(), found[name]
            added = max(known.peak, live.peak - start)
            found[name] = PartMemory(added, known.kept + live.bytes - start)

        return hook

    handles = [
        handle
        for name, modules in parts.items()
        for module in modules
        for handle in (
            module.register_forward_pre_hook(begin),
            module.register_forward_hook(end(name)),
        )
    ]
    try:
        with live:
            call()
    finally:
        for handle in handles:
            handle.remove()
    return max(peak, live.peak), found
