"""The performance targets of this library, in one place, and whether rows of results meet them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.measure.rows import ALL_MODES, Row
from benchmarks.report.markdown import table
from benchmarks.subjects.registry import IMPLEMENTATIONS

_MICROSECONDS = ("seconds", "host")  # figures that are shown in them
_EXACT = ", locations in "  # in the labels of workloads that some other libraries need


@dataclass(frozen=True)
class Target:
    """A limit on one figure of a row."""

    says: str  # what is limited
    measurement: str  # which table of results it is about
    variants: tuple[str, ...]  # of several the one with the smallest figure counts
    mode: str
    figure: str = "ratio"  # of the row: "ratio", "seconds", "host" or "exponent"
    at_least: float | None = None
    at_most: float | None = None
    label: str = "paper-encoder, float32"  # of the workload
    threads: int | None = 2  # None on a GPU
    subject: str = "native"  # what others are compared with

    @property
    def limit(self) -> str:
        """The limit as it is printed."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        number = self.at_most if self.at_least is None else self.at_least
        assert number is not None
        sign = "<=" if self.at_least is None else ">="
        return f"{sign} {number * 1e6:g} us" if self._is_time else f"{sign} {number:g}x"

    @property
    def _is_time(self) -> bool:
        return self.figure in _MICROSECONDS

    def is_met_by(self, value: float) -> bool:
        """Whether a measured figure is within the limits."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def show(self, value: float) -> str:
        """A figure, in microseconds if it is a time, with enough decimals to see its status."""
        scale, decimals = 1e6 if self._is_time else 1.0, 2
        shown = f"{value * scale:.{decimals}f}"
        while self.is_met_by(float(shown) / scale) != self.is_met_by(value):
            decimals += 1
            shown = f"{value * scale:.{decimals}f}"
        return shown

    def is_about(self, row: Row) -> bool:
        """Whether a row was measured for this target."""
        label, _, locations = row["label"].partition(_EXACT)
        return (
            row["measurement"] == self.measurement
            and (row["device"] != "cpu") == (self.threads is None)
            and row["variant"] in self.variants
            and label == self.label
            # Our own time on the locations of another library is another figure.
            and (not locations or self.subject not in self.variants)
            and self.threads in (None, row["threads"])
            and (row["subject"], row["mode"]) == (self.subject, self.mode)
        )

    def figure_of(self, row: Row) -> float:
        """The figure of a row that is limited."""
        return float(row[self.figure]["median"])


@dataclass(frozen=True)
class Check:
    """A target, and the rows of one machine that were measured for it, the best first."""

    target: Target
    rows: tuple[Row, ...]

    @property
    def value(self) -> float | None:
        """The figure that counts."""
        return self.target.figure_of(self.rows[0]) if self.rows else None

    @property
    def status(self) -> str:
        """In words."""
        if self.value is None:
            return "not measured"
        if self.target.subject in self.target.variants and "wrong" in self.rows[0]:
            return "WRONG ANSWER"
        return "pass" if self.target.is_met_by(self.value) else "FALLS SHORT"

    @property
    def measured(self) -> str:
        """The figure as it is printed, and of several variants the name of the best one."""
        if self.value is None:
            return "-"
        shown = self.target.show(self.value)
        if len(self.target.variants) == 1:
            return shown
        best, *others = (variant_name(row) for row in self.rows)
        slower = f" (slower: {', '.join(others)})" if others else ""
        return f"{shown} {best}{slower}"


def check(rows: Sequence[Row], targets: Sequence[Target]) -> list[Check]:
    """Every target with the last rows that each machine has for it."""
    checks = []
    for target in targets:
        machines: dict[str, dict[str, Row]] = {}
        for row in filter(target.is_about, rows):
            machines.setdefault(machine(row), {})[row["variant"]] = row
        for own in machines.values():
            checks.append(Check(target, tuple(sorted(own.values(), key=target.figure_of))))
        if not machines:
            checks.append(Check(target, ()))
    return checks


def check_table(checks: Sequence[Check]) -> str:
    """Markdown: a line for each check."""
    body = [
        [
            *(each.target.label, each.target.says, each.target.mode, each.target.limit),
            *(each.measured, each.status, machine(each.rows[0]) if each.rows else "-"),
        ]
        for each in checks
    ]
    heads = ["workload", "target", "mode", "limit", "measured", "status", "on"]
    return table(heads, body)


def machine(row: Row) -> str:
    """Where a row was measured, in words."""
    if row["device"] != "cpu":
        return str(row["device"])
    return f"{row['cpu']}, {row['cores']} cores, {row['simd']}"


def variant_name(row: Row) -> str:
    """Its variant, with the backend of dense attention that ran, and whether it is wrong."""
    name = f"{row['variant']} ({row['backend']})" if "backend" in row else str(row["variant"])
    return f"{name} (WRONG)" if "wrong" in row else name


def _targets() -> Iterator[Target]:
    """On two cores of a processor; models on one."""
    both = ("forward", "forward+backward")
    for says, measurement, variant, limits in (
        (f"{_FASTER} the composite", "latency", "composite", (25, 12)),
        (f"{_FASTER} dense attention", "latency", "dense", (10, 6)),
        ("peak extra memory of the composite over ours", "memory", "composite", (10, 5)),
    ):
        for mode, limit in zip(both, limits, strict=True):
            yield Target(says, measurement, (variant,), mode, at_least=limit)
    for mode in both:
        yield Target(
            *("time for twice the cells", "growth", _NATIVE, mode),
            at_most=2.1,
            label="paper-encoder-double, float32",
        )
    yield Target(
        *("host overhead of a call", "overhead", _NATIVE, "forward", "seconds"),
        at_most=15e-6,
        label="four-elements, float32",
    )
    for block, workload, limit in (
        ("attention block", "paper-encoder", 4),
        ("attention block", "paper-encoder-large", 15),
        ("encoder layer", "paper-encoder", 2),
        ("encoder layer", "paper-encoder-large", 6),
    ):
        yield Target(
            *(f"{_FASTER} the dense {block}", block, _DENSE, "forward+backward"),
            at_least=limit,
            label=f"{workload}, float32",
            subject="deformable",
        )
    for model, times in (("Deformable DETR, 480 px", 1.9), ("Mask2Former, 384 px", 1.7)):
        yield Target(
            *(f"{_FASTER} the plain model", "transformers model", ("plain",), "forward"),
            at_least=times,
            label=model,
            threads=1,
            subject="stdeform",
        )
    for form, times in (("default", 1.1), ("gather", 2)):
        yield Target(
            f"ONNX Runtime, {form}: time over the plain one's",
            *("exported model", (f"onnxruntime {form}",), "forward"),
            at_most=times,
            label="detector, 192 x 256 px, batch 2",
            threads=1,
            subject="plain",
        )
    for mode in both:
        yield Target(
            *("exponent of T * H * W", "exponent", ("deformable",), mode, "exponent"),
            at_least=0.95,
            at_most=1.05,
            label="attention block",
            subject="attention block",
        )


def _gpu_targets() -> Iterator[Target]:
    """On an H100 or H200."""
    for (dtype, mode), seconds in {
        ("float32", "forward"): 135e-6,
        ("bfloat16", "forward"): 100e-6,
        ("float32", "backward"): 200e-6,
        ("bfloat16", "backward"): 200e-6,
    }.items():
        says = ("device time", "latency", _NATIVE, mode, "seconds")
        yield Target(*says, at_most=seconds, label=f"paper-encoder, {dtype}", threads=None)
    for dtype in ("float32", "bfloat16"):
        for mode in ALL_MODES:
            says = (f"{_FASTER} 3-D baselines", "latency", BASELINES, mode, "ratio")
            yield Target(*says, at_least=4, label=f"paper-encoder, {dtype}", threads=None)
    for dtype in ("float32", "bfloat16"):
        says = (f"{_FASTER} dense attention", "latency", _DENSE, "forward+backward", "ratio")
        yield Target(*says, at_least=5, label=f"paper-encoder-large, {dtype}", threads=None)
        yield Target(
            *("deterministic: time over the default", "latency", _DETERMINISTIC, "backward"),
            at_most=2,
            label=f"paper-encoder, {dtype}",
            threads=None,
        )
    says = ("host time of a call", "latency", _NATIVE, "forward", "host")
    yield Target(*says, at_most=15e-6, label="four-elements, float32", threads=None)


_FASTER = "times faster than"
_DENSE: tuple[str, ...] = ("dense",)
_NATIVE: tuple[str, ...] = ("native",)
_DETERMINISTIC: tuple[str, ...] = ("native-deterministic",)
_OURS = (*_NATIVE, *_DETERMINISTIC, "reference")
# Other 3-D deformable attention.
BASELINES = tuple(
    variant.name
    for variant in IMPLEMENTATIONS.values()
    if variant.is_operator and variant.name not in _OURS and 3 in variant.axes
)
TARGETS = tuple(_targets())
GPU_TARGETS = tuple(_gpu_targets())
