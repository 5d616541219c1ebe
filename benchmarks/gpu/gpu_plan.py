"""What `gpu-check` times, most valuable first, and what is promised of it on an H100 or H200."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from benchmarks.report.bars import Row, telling
from benchmarks.report.markdown import table
from benchmarks.subjects.base import ALL_MODES
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload

SUBJECT = "native"
DENSE = "dense"
_ALL = (SUBJECT, "composite", DENSE)
_COMPILING = 30.0  # seconds, a guess


@dataclass(frozen=True)
class Case:
    """A workload, and the variants that are timed on it in turn.

    Attributes:
        workload: What is run.
        variants: Names in `IMPLEMENTATIONS`; ratios are to the first.
        modes: Of `ALL_MODES`.
        seconds: What it is expected to take, where that is more than the cases before it.
    """

    workload: Workload
    variants: tuple[str, ...] = _ALL
    modes: tuple[str, ...] = ALL_MODES
    seconds: float = 0

    @property
    def label(self) -> str:
        """The workload, and who is new on one that was there before."""
        if any(IMPLEMENTATIONS[name].is_compiled for name in self.variants):
            return f"{self.workload.label} ({', '.join(self.variants[1:])})"
        return self.workload.label

    @property
    def key(self) -> str:
        """The label and the modes: no two cases of a plan have the same."""
        return f"{self.label}: {', '.join(self.modes)}"


def cases(quick: bool, full: bool) -> list[Case]:
    """In the order in which they are worth having.

    Args:
        quick: A tiny problem only.
        full: Also what does not fit in the usual time.
    """
    if quick:
        return [Case(_adapt("tiny", dtype=dtype)) for dtype in ("float32", "bfloat16")]
    # What the bars are about comes first.
    chosen = [
        Case(_adapt("paper-encoder")),
        Case(_adapt("paper-encoder", dtype="bfloat16")),
        # The composite of the large encoder would take most of the time, and only grows as we do.
        Case(_adapt("paper-encoder-large", dtype="bfloat16"), (SUBJECT, DENSE)),
        Case(_adapt("four-elements"), (SUBJECT,)),
        # In float32 dense attention has no fused kernel, so only what the bar is about.
        Case(_adapt("paper-encoder-large"), (SUBJECT, DENSE), ("forward+backward",)),
        Case(_adapt("paper-decoder")),
        Case(_adapt("detr-encoder")),
        *(
            Case(_adapt("paper-encoder", offset_spread=spread), (SUBJECT,))
            for spread in (0.5, 8.0, None)
        ),
        Case(_adapt("paper-encoder", batch=4), (SUBJECT,)),
        Case(_adapt("paper-encoder-large"), (SUBJECT,), ("forward", "backward")),
        Case(_adapt("bev-cross"), (SUBJECT, "composite")),
        Case(_adapt("paper-encoder", dtype="float16"), (SUBJECT,)),
        # Last, because nobody knows how long the compiler takes on that machine.
        Case(
            _adapt("paper-encoder"),
            (SUBJECT, "composite-compiled"),
            ("forward",),
            seconds=_COMPILING,
        ),
    ]
    if full:
        chosen += _matrix({case.workload for case in chosen})
    return chosen


def _matrix(known: Collection[Workload]) -> list[Case]:
    """Every dtype, batch and spread of what is not known yet, and compiled composites."""
    names = ("paper-encoder", "paper-decoder", "detr-encoder", "bev-cross", "paper-encoder-large")
    matrix = [
        _adapt(name, dtype=dtype, batch=batch, offset_spread=spread)
        for name in names
        for dtype in ("float32", "bfloat16", "float16")
        for batch in (1, 4)
        for spread in (2.0, 0.5, 8.0, None)
    ]
    cases = [
        # The composite of the large encoder would take most of the time, and only grows as we do.
        Case(each, (SUBJECT, DENSE) if each.name == "paper-encoder-large" else _ALL)
        for each in matrix
        if each not in known
    ]
    # A compiled backward runs once; forward and backward together run anew each time.
    compiled = [
        Case(_adapt(name, dtype=dtype), (SUBJECT, "composite-compiled"), modes, seconds=_COMPILING)
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


def _adapt(name: str, **changes: object) -> Workload:
    return dataclasses.replace(WORKLOADS[name], **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Bar:
    """A limit; on our time, or where others are named on the time of the fastest over ours.

    Others' times were taken in turn with ours, on the same inputs, and their ratio is of each
    round; those of another library may be on the locations that its dtype can hold.
    """

    workload: str
    dtype: str
    mode: str
    limit: float
    others: tuple[str, ...] = ()
    whose: str = ""
    figure: str = "seconds"

    @property
    def label(self) -> str:
        """Of its workload."""
        return f"{self.workload}, {self.dtype}"

    def judge(self, rows: Sequence[Row]) -> tuple[str, str]:
        """What was measured, and the verdict."""
        chosen = [row for row in rows if self._is_about(row)]
        if not self.others and any("wrong" in row for row in chosen):
            return "-", "WRONG ANSWER"
        if self.others:
            if not chosen:
                return "-", f"not measured: no {self.whose}"
            ratios = {variant_name(row): float(row["ratio"]["median"]) for row in chosen}
            best = min(ratios, key=lambda name: ratios[name])
            rest = ", ".join(name for name in ratios if name != best)
            figure = telling(ratios[best], lambda shown: shown >= self.limit)
            measured = f"{figure}x {best}" + (f" (slower: {rest})" if rest else "")
            met = ratios[best] >= self.limit
        else:
            if not chosen:
                return "-", "not measured"
            ours = float(chosen[0][self.figure]["median"])
            met = ours <= self.limit
            measured = telling(1e6 * ours, lambda shown: shown / 1e6 <= self.limit, 1) + " us"
        return measured, "pass" if met else "FALLS SHORT"

    def promise(self) -> str:
        if self.others:
            return f">= {self.limit:g}x faster than {self.whose}"
        whose = "host" if self.figure == "host" else "device"
        return f"{whose} time <= {1e6 * self.limit:g} us"

    def _is_about(self, row: Row) -> bool:
        label, _, locations = row["label"].partition(_EXACT)
        return (
            label == self.label
            and (not locations or bool(self.others))
            and row["mode"] == self.mode
            and row["variant"] in (self.others or (SUBJECT,))
        )


def variant_name(row: Row) -> str:
    """Whose row it is, with the backend of dense attention that ran, and whether it is wrong."""
    name = f"{row['variant']} ({row['backend']})" if "backend" in row else str(row["variant"])
    return f"{name} (WRONG)" if "wrong" in row else name


_EXACT = ", locations in "
# Whoever attends to volumes as we do.
ANCHORS = tuple(
    variant.name
    for variant in IMPLEMENTATIONS.values()
    if variant.is_operator and variant.name not in (SUBJECT, "reference") and 3 in variant.axes
)
_TIMES = {
    ("float32", "forward"): 135e-6,
    ("bfloat16", "forward"): 100e-6,
    ("float32", "backward"): 200e-6,
    ("bfloat16", "backward"): 200e-6,
}
_BARS = (
    *(_Bar("paper-encoder", dtype, mode, limit) for (dtype, mode), limit in _TIMES.items()),
    *(
        _Bar("paper-encoder", dtype, mode, 4, ANCHORS, "anchor")
        for dtype in ("float32", "bfloat16")
        for mode in ALL_MODES
    ),
    *(
        _Bar("paper-encoder-large", dtype, "forward+backward", 5, (DENSE,), DENSE)
        for dtype in ("float32", "bfloat16")
    ),
    _Bar("four-elements", "float32", "forward", 15e-6, figure="host"),
)


def verdicts(rows: Sequence[Row], *, on_gpu: bool) -> str:
    """A table of every bar; rows of another device than a GPU say nothing about them.

    Args:
        rows: Of the benchmark and of the peers.
        on_gpu: Where they were timed.
    """
    judged = rows if on_gpu else ()
    body = [[bar.label, bar.mode, bar.promise(), *bar.judge(judged)] for bar in _BARS]
    told = table(["workload", "mode", "bar", "measured", "verdict"], body)
    return f"{told}\n\nAnchors, where they were timed: {', '.join(ANCHORS)}."
