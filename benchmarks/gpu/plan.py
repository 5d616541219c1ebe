"""What `gpu-check` times, and in which order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmarks.measure.rows import ALL_MODES
from benchmarks.workloads import WORKLOADS, Workload

_OURS = ("native",)
_DETERMINISTIC = ("native", "native-deterministic")
_DENSE = ("native", "dense")
_ALL = ("native", "composite", "dense")
_COMPILED = ("native", "composite-compiled")
_COMPILING, _SLOW = 30.0, 60.0  # seconds, guesses


@dataclass(frozen=True)
class Case:
    """A workload, and the variants that are timed on it in turn."""

    workload: Workload
    variants: tuple[str, ...] = _ALL  # ratios are to the first
    modes: tuple[str, ...] = ALL_MODES
    seconds: float = 0  # expected, where that is more than the cases before it take

    @property
    def label(self) -> str:
        """Of no other case of a plan: the workload, and variants and modes that are not usual."""
        extras = [*self.variants[1:]] if self.variants in (_COMPILED, _DETERMINISTIC) else []
        extras += self.modes if self.modes != ALL_MODES else []
        return self.workload.label + (f" ({', '.join(extras)})" if extras else "")


def usual(quick: bool) -> list[Case]:
    """In the order of their value; of a tiny problem only if it has to be quick."""
    if quick:
        return [Case(adapt("tiny", dtype=dtype)) for dtype in ("float32", "bfloat16")]
    spreads = [adapt("paper-encoder", offset_spread=spread) for spread in (0.5, 8.0, None)]
    return [
        # The workloads of the targets come first.
        Case(adapt("paper-encoder")),
        Case(adapt("paper-encoder", dtype="bfloat16")),
        # The composite of the large encoder would take most of the time, and only grows as we do.
        Case(adapt("paper-encoder-large", dtype="bfloat16"), _DENSE),
        Case(adapt("four-elements"), _OURS),
        # In float32 dense attention has no fused kernel, so only what the target is about.
        Case(adapt("paper-encoder-large"), _DENSE, ("forward+backward",)),
        Case(adapt("paper-encoder"), _DETERMINISTIC, ("backward",)),
        Case(adapt("paper-encoder", dtype="bfloat16"), _DETERMINISTIC, ("backward",)),
        Case(adapt("paper-decoder")),
        Case(adapt("detr-encoder")),
        *(Case(each, _OURS) for each in spreads),
        Case(adapt("paper-encoder", batch=4), _OURS),
        Case(adapt("paper-encoder-large"), _OURS, ("forward", "backward")),
        Case(adapt("bev-cross"), ("native", "composite")),
        Case(adapt("paper-encoder", dtype="float16"), _OURS),
        Case(adapt("paper-encoder"), _COMPILED, ("forward",), _COMPILING),
    ]


def matrix(quick: bool) -> list[Case]:
    """The usual cases, then every other dtype, batch and spread, and compiled composites."""
    cases = usual(quick)
    if quick:
        return cases
    known = {case.workload for case in cases}
    names = ("paper-encoder", "paper-decoder", "detr-encoder", "bev-cross", "paper-encoder-large")
    every = [
        adapt(name, dtype=dtype, batch=batch, offset_spread=spread)
        for name in names
        for dtype in ("float32", "bfloat16", "float16")
        for batch in (1, 4)
        for spread in (2.0, 0.5, 8.0, None)
    ]
    others = [
        Case(each, _DENSE if each.name == "paper-encoder-large" else _ALL, seconds=_seconds(each))
        for each in every
        if each not in known
    ]
    # A compiled backward runs once; forward and backward together run again each time.
    others += [
        Case(adapt(name, dtype=dtype), _COMPILED, (mode,), _COMPILING)
        for name in ("paper-encoder", "paper-decoder", "detr-encoder")
        for dtype in ("float32", "bfloat16")
        for mode in ("forward", "forward+backward")
        if (name, dtype, mode) != ("paper-encoder", "float32", "forward")
    ]
    return [*cases, *sorted(others, key=lambda case: case.seconds)]


def _seconds(workload: Workload) -> float:
    """More than zero where dense attention is not flash attention, of four large clips."""
    is_slow = workload.batch > 1 and workload.dtype == "float32" and workload.num_queries > 20_000
    return _SLOW if is_slow else 0


def adapt(name: str, **changes: object) -> Workload:
    """A named workload with some fields changed."""
    return dataclasses.replace(WORKLOADS[name], **changes)  # type: ignore[arg-type]
