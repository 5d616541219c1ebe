"""What `gpu-check` times, and in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from benchmarks.measure.rows import ALL_MODES
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload

SUBJECT = "native"
_DENSE = (SUBJECT, "dense")
_ALL = (SUBJECT, "composite", "dense")
_COMPILED = (SUBJECT, "composite-compiled")
_COMPILING = 30.0  # seconds, a guess


@dataclass(frozen=True)
class Case:
    """A workload, and the variants that are timed on it in turn."""

    workload: Workload
    variants: tuple[str, ...] = _ALL  # ratios are to the first
    modes: tuple[str, ...] = ALL_MODES
    seconds: float = 0  # expected, where that is more than the cases before it take

    @property
    def label(self) -> str:
        """The workload, and which variants are new on one that was there before."""
        if any(IMPLEMENTATIONS[name].is_compiled for name in self.variants):
            return f"{self.workload.label} ({', '.join(self.variants[1:])})"
        return self.workload.label

    @property
    def key(self) -> str:
        """The label and the modes: no two cases of a plan have the same."""
        return f"{self.label}: {', '.join(self.modes)}"


def cases(quick: bool, full: bool) -> list[Case]:
    """In the order of their value.

    Args:
        quick: A tiny problem only.
        full: Also what does not fit in the usual time.
    """
    if quick:
        return [Case(adapt("tiny", dtype=dtype)) for dtype in ("float32", "bfloat16")]
    # The workloads of the targets come first.
    chosen = [
        Case(adapt("paper-encoder")),
        Case(adapt("paper-encoder", dtype="bfloat16")),
        # The composite of the large encoder would take most of the time, and only grows as we do.
        Case(adapt("paper-encoder-large", dtype="bfloat16"), _DENSE),
        Case(adapt("four-elements"), (SUBJECT,)),
        # In float32 dense attention has no fused kernel, so only what the target is about.
        Case(adapt("paper-encoder-large"), _DENSE, ("forward+backward",)),
        Case(adapt("paper-decoder")),
        Case(adapt("detr-encoder")),
        *(
            Case(adapt("paper-encoder", offset_spread=spread), (SUBJECT,))
            for spread in (0.5, 8.0, None)
        ),
        Case(adapt("paper-encoder", batch=4), (SUBJECT,)),
        Case(adapt("paper-encoder-large"), (SUBJECT,), ("forward", "backward")),
        Case(adapt("bev-cross"), (SUBJECT, "composite")),
        Case(adapt("paper-encoder", dtype="float16"), (SUBJECT,)),
        # Last, because it is not known how long the compiler takes on that machine.
        Case(adapt("paper-encoder"), _COMPILED, ("forward",), seconds=_COMPILING),
    ]
    return [*chosen, *(_matrix({case.workload for case in chosen}) if full else ())]


def _matrix(known: Collection[Workload]) -> list[Case]:
    """Every dtype, batch and spread of what is not known yet, and compiled composites."""
    names = ("paper-encoder", "paper-decoder", "detr-encoder", "bev-cross", "paper-encoder-large")
    matrix = [
        adapt(name, dtype=dtype, batch=batch, offset_spread=spread)
        for name in names
        for dtype in ("float32", "bfloat16", "float16")
        for batch in (1, 4)
        for spread in (2.0, 0.5, 8.0, None)
    ]
    cases = [
        Case(each, _DENSE if each.name == "paper-encoder-large" else _ALL)
        for each in matrix
        if each not in known
    ]
    # A compiled backward runs once; forward and backward together run again each time.
    compiled = [
        Case(adapt(name, dtype=dtype), _COMPILED, modes, seconds=_COMPILING)
        for name in ("paper-encoder", "paper-decoder", "detr-encoder")
        for dtype in ("float32", "bfloat16")
        for modes in (("forward",), ("forward+backward",))
        if (name, dtype, modes) != ("paper-encoder", "float32", ("forward",))
    ]
    # Dense attention that is not flash attention, of four large clips, takes longest.
    slow = [case for case in cases if _is_slow(case.workload)]
    return [*(case for case in cases if case not in slow), *compiled, *slow]


def _is_slow(workload: Workload) -> bool:
    return workload.batch > 1 and workload.dtype == "float32" and workload.num_queries > 20_000


def adapt(name: str, **changes: object) -> Workload:
    """A named workload with some fields changed."""
    return dataclasses.replace(WORKLOADS[name], **changes)  # type: ignore[arg-type]
