"""The figures this library promises, in one place, and whether rows of results reach them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # one figure, where it was measured, and how to repeat it


@dataclass(frozen=True)
class Bar:
    """A limit on one figure of one row.

    Attributes:
        says: What is promised, in words; the limit is added.
        measurement: Which table of results it is about.
        variant: Whose row it is.
        mode: "forward" or "forward+backward".
        figure: Which figure of the row: "ratio", "seconds" or "exponent".
        at_least: Lower limit, or None.
        at_most: Upper limit, or None.
        label: The workload it holds for.
        threads: The threads it holds for.
        subject: Whom the promise is about.
    """

    says: str
    measurement: str
    variant: str
    mode: str
    figure: str = "ratio"
    at_least: float | None = None
    at_most: float | None = None
    label: str = "paper-encoder, float32"
    threads: int = 2
    subject: str = "native"

    @property
    def limit(self) -> str:
        """The limit as it is printed."""
        number = self.at_least if self.at_least is not None else self.at_most
        assert number is not None
        sign = ">=" if self.at_least is not None else "<="
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return f"{sign} {number * 1e6:g} us" if self.figure == "seconds" else f"{sign} {number:g}x"

    def is_met_by(self, value: float) -> bool:
        """Whether a measured figure keeps the promise."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def show(self, value: float) -> str:
        """A measured figure as it is printed, in microseconds if it is a time."""
        scale = 1e6 if self.figure == "seconds" else 1
        return telling(value * scale, lambda shown: self.is_met_by(shown / scale))

    def is_about(self, row: Row) -> bool:
        """Whether a row was measured for this bar."""
        keys = ("subject", "measurement", "variant", "mode", "label", "threads")
        return all(row[key] == getattr(self, key) for key in keys)


@dataclass(frozen=True)
class Verdict:
    """A bar, and the row that was measured for it; None where it was not measured."""

    bar: Bar
    row: Row | None

    @property
    def value(self) -> float | None:
        """The figure that is judged."""
        return None if self.row is None else float(self.row[self.bar.figure]["median"])

    @property
    def word(self) -> str:
        """Pass, falls short, or not measured."""
        if self.value is None:
            return "not measured"
        return "pass" if self.bar.is_met_by(self.value) else "FALLS SHORT"


def telling(value: float, is_met_by: Callable[[float], bool], decimals: int = 2) -> str:
    """A figure with so many decimals that the verdict on it can be read: at least `decimals`."""
    while is_met_by(float(f"{value:.{decimals}f}")) != is_met_by(value):
        decimals += 1
    return f"{value:.{decimals}f}"


_FASTER = "times faster than"
_MEMORY = "peak extra memory of the composite over ours"
BARS = (
    Bar(f"{_FASTER} the composite", "latency", "composite", "forward", at_least=25),
    Bar(f"{_FASTER} the composite", "latency", "composite", "forward+backward", at_least=12),
    Bar(f"{_FASTER} dense attention", "latency", "dense", "forward", at_least=10),
    Bar(f"{_FASTER} dense attention", "latency", "dense", "forward+backward", at_least=6),
    Bar(_MEMORY, "memory", "composite", "forward", at_least=10),
    Bar(_MEMORY, "memory", "composite", "forward+backward", at_least=5),
    *(
        Bar(
            "time for twice the cells",
            "growth",
            "native",
            mode,
            at_most=2.1,
            label="paper-encoder-double, float32",
        )
        for mode in ("forward", "forward+backward")
    ),
    Bar(
        "host overhead of a call",
        "overhead",
        "native",
        "forward",
        figure="seconds",
        at_most=15e-6,
        label="four-elements, float32",
    ),
    *(
        Bar(
            f"times faster than the dense {block}",
            block,
            "dense",
            "forward+backward",
            at_least=at_least,
            label=f"{workload}, float32",
            subject="deformable",
        )
        for block, workload, at_least in (
            ("attention block", "paper-encoder", 4),
            ("attention block", "paper-encoder-large", 15),
            ("encoder layer", "paper-encoder", 2),
            ("encoder layer", "paper-encoder-large", 6),
        )
    ),
    *(
        Bar(
            "exponent of T * H * W",
            "exponent",
            "deformable",
            mode,
            figure="exponent",
            at_least=0.95,
            at_most=1.05,
            label="attention block",
            subject="attention block",
        )
        for mode in ("forward", "forward+backward")
    ),
)


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Every bar with the last row that each machine has for it."""
    verdicts = []
    for bar in BARS:
        last = {machine(row): row for row in rows if bar.is_about(row)}
        verdicts += [Verdict(bar, row) for row in (*last.values(),) or (None,)]
    return verdicts


def machine(row: Row) -> str:
    """Where a row was measured, in words."""
    return f"{row['cpu']}, {row['cores']} cores, {row['simd']}"
