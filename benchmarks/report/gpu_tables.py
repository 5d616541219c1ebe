"""Rows from a GPU as tables of Markdown: targets, times, and what share of the GPU is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.costs import gpu_roofline
from benchmarks.measure import kernel_times
from benchmarks.measure.rows import Row
from benchmarks.report.markdown import table
from benchmarks.report.targets import GPU_TARGETS, check, check_table, variant_name
from benchmarks.workloads import DTYPES

SUITE = "gpu-check"
FIELDS = ("capability", "driver, clock, power", "nvcc", "torch_cuda")  # of where a run took place


def is_about(row: Row) -> bool:
    """Whether a row is from a GPU, or from a dry run of what takes place on one."""
    return bool(row["device"] != "cpu" or row["suite"] == SUITE)


def section(rows: Sequence[Row]) -> str:
    """Every table that these rows of one device give."""
    timed = _of(rows, "latency")
    rates = {row["label"]: row["per_second"] for row in _of(rows, "device ceiling")}
    parts = [check_table(check(rows, GPU_TARGETS)) if timed else "", times(timed)]
    parts += [_gathered(timed, rates), _added(timed, rates), _ceilings(rates), kernels(rows)]
    parts.append(_models(rows))
    return "\n\n".join(filter(None, parts))


def times(rows: Sequence[Row]) -> str:
    """Times of the device and of the host; ratios are of the device's times."""
    heads = ["workload", "mode", "variant", "device us", "flushed us", "alone us", "host us"]
    body = {}  # of rows about the same the last counts
    for row in rows:
        about = (row["label"], row["mode"], variant_name(row))
        keys = ("seconds", "flushed", "wall", "host")
        body[about] = [
            *about,
            *(f"{1e6 * row[key]['median']:.1f}" if key in row else "-" for key in keys),
            f"{row['ratio']['median']:.2f}",
        ]
    return table([*heads, "times ours"], body.values())


def kernels(rows: Sequence[Row]) -> str:
    """The kernels of each call that was profiled."""
    body = [
        [
            *(row["label"], row["mode"], kernel_times.short(row["kernel"])),
            *(f"{row['launches']:g}", f"{1e6 * row['kernel_seconds']:.1f}"),
        ]
        for row in _of(rows, "kernels")
    ]
    return table(["workload", "mode", "kernel", "launches", "us of a call"], body)


def _models(rows: Sequence[Row]) -> str:
    """Whole models, one clip at a time: wall-clock time, and what the allocator holds."""
    peaks = {
        (row["label"], row["variant"]): row["extra_bytes"] for row in _of(rows, "memory of models")
    }
    body = {}
    for row in _of(rows, "model"):
        about = (row["label"], row["variant"])
        ms = [f"{1e3 * row['seconds'][key]:.1f}" for key in ("median", "q1", "q3")]
        body[about] = [
            *about,
            f"{ms[0]} [{ms[1]}, {ms[2]}]",
            f"{row['frames'] / row['seconds']['median']:.1f}",
            f"{row['ratio']['median']:.2f}",
            f"{peaks[about] / 2**20:.0f}" if about in peaks else "-",
        ]
    heads = ["part", "model", "ms", "frames per second", "times the first", "peak MiB"]
    return table(heads, body.values())


def _of(rows: Iterable[Row], measurement: str) -> list[Row]:
    return [row for row in rows if row["measurement"] == measurement]


def _gathered(rows: Iterable[Row], rates: Mapping[str, Mapping[str, float]]) -> str:
    """What our forward reads per second, as a share of what the GPU gives."""
    body = []
    for row in rows:
        if "gathered_bytes" not in row:
            continue
        workload = row["workload"]
        row_bytes = workload["head_dim"] * DTYPES[workload["dtype"]].itemsize
        gathered = row["gathered_bytes"] / row["seconds"]["median"]
        flushed = row["flushed"] if "flushed" in row else row["seconds"]
        compulsory = row["compulsory_bytes"] / flushed["median"]
        limits = [gpu_roofline.gather_name(row_bytes, level) for level in ("L1", "L2")]
        body.append(
            [
                row["label"],
                f"{gathered / 1e9:.0f}",
                *(_share(gathered, rates.get(limit)) for limit in limits),
                f"{compulsory / 1e9:.0f}",
                _share(compulsory, rates.get(gpu_roofline.copy_name("DRAM"))),
            ]
        )
    heads = ["workload", "gathered GB/s", "of L1 gathers", "of L2 gathers"]
    heads += ["compulsory GB/s", "of DRAM copies"]
    explained = (
        "Our forward: bytes of all corner rows by the device's time, beside random rows of that\n"
        "size; bytes of all arguments and the result, each once, by the time with a flushed cache:"
    )
    return f"{explained}\n\n{table(heads, body)}" if body else ""


def _added(rows: Iterable[Row], rates: Mapping[str, Mapping[str, float]]) -> str:
    """What our backward adds per second to the value's gradient, likewise."""
    limits = {
        numbers: rates.get(gpu_roofline.addition_name(numbers, "spread"))
        for numbers in gpu_roofline.NUMBERS
    }
    body = []
    for row in rows:
        if "added_numbers" in row:
            rate = row["added_numbers"] / row["seconds"]["median"]
            shares = [_share(rate, limit) for limit in limits.values()]
            body.append([row["label"], row["added"], f"{rate / 1e9:.1f}", *shares])
    heads = ["workload", "added", "G numbers/s", *(f"of {n} at once, spread" for n in limits)]
    explained = "Our backward: numbers added to the value's gradient, by the time of all it does:"
    return f"{explained}\n\n{table(heads, body)}" if body else ""


def _ceilings(rates: Mapping[str, Mapping[str, float]]) -> str:
    """What the GPU gives."""
    body = [
        [name, *(f"{rate[key] / 1e9:.0f}" for key in ("median", "q1", "q3"))]
        for name, rate in rates.items()
    ]
    heads = ["ceiling, G bytes or additions per second", "median", "q1", "q3"]
    return table(heads, body)


def _share(rate: float, limit: Mapping[str, float] | None) -> str:
    return "-" if limit is None else f"{rate / limit['median']:.0%}"
