"""Variants timed in turn on a device: one row per variant and mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.measure.device_timing import time_calls
from benchmarks.measure.timing import ratios, spread
from benchmarks.report.bars import Row
from benchmarks.subjects.base import Case
from benchmarks.workloads import Workload


def compare(
    workload: Workload,
    variants: Mapping[str, Case],
    modes: Sequence[str],
    device: str,
    *,
    rounds: int,
) -> Iterator[Row]:
    """Times variants whose answers have been checked.

    Args:
        workload: What they were prepared for.
        variants: On the device; ratios are to the first.
        modes: Of `ALL_MODES`.
        device: "cuda" or "cpu".
        rounds: How often.

    Yields:
        The device's seconds, the others of `DeviceTime`, and the ratio of the device's to those of
        the first.
    """
    first = next(iter(variants))
    for mode in modes:
        tasks = {name: prepared.call(mode) for name, prepared in variants.items()}
        times = time_calls(tasks, device, rounds=rounds)
        for name, own in times.items():
            ratio = spread(ratios(own.rounds, times[first].rounds))
            figures = dataclasses.asdict(own)
            yield {
                "label": workload.label,
                "workload": dataclasses.asdict(workload),
                "variant": name,
                "mode": mode,
                "seconds": figures.pop("device"),
                **figures,
                "ratio": {"to": first, **dataclasses.asdict(ratio)},
            }


def describe(row: Row) -> str:
    """One row for the terminal."""
    micro = {name: 1e6 * row[name]["median"] for name in ("seconds", "host", "wall")}
    return (
        f"{row['label']} {row['variant']} {row['mode']}: device {micro['seconds']:.1f} us, "
        f"host {micro['host']:.1f} us, alone {micro['wall']:.1f} us"
    )
