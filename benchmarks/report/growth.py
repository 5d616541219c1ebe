"""What rows say about growth: exponents, and the size from which on deformable is cheaper."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks.measure import stats
from benchmarks.measure.rows import MODES, Row


def exponents(rows: Sequence[Row], smallest: int = 0) -> Iterator[Row]:
    """Exponents of the cells by mode and kind, of the times and of the multiply-adds.

    Args:
        rows: Of one subject; those of a mode and kind differ in their cells.
        smallest: Cells from which on rows are fitted.
    """
    for about, own in _by_mode_and_kind(rows):
        fitted = [row for row in own if row["cells"] >= smallest]
        sizes = [row["cells"] for row in fitted]
        rounds = stats.shared(*(row["rounds"] for row in fitted))
        yield {
            **about,
            "measurement": "exponent",
            "exponent": dataclasses.asdict(stats.exponent(dict(zip(sizes, rounds, strict=True)))),
            "counted": stats.slope({row["cells"]: row["multiply_adds"] for row in fitted}),
            "sizes": sizes,
            "fitted_rounds": len(rounds[0]),
        }


def crossovers(rows: Sequence[Row]) -> Iterator[Row]:
    """By mode and dense kind, the cells from which on deformable attention is cheaper.

    What is compared are the medians of the ratios within each round.

    Args:
        rows: As for `exponents`.
    """
    for about, own in _by_mode_and_kind(rows):
        kind = about["variant"]
        if kind == "deformable":
            continue
        gains = {row["cells"]: row["ratio"]["median"] for row in own}
        yield {
            **about,
            "measurement": "crossover",
            "variant": f"than {kind}",
            "cells": stats.crossover(gains),
            "smallest": min(gains),
        }


def _by_mode_and_kind(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    about = ("subject", "threads", "variant", "mode")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: MODES.index(row["mode"])):
        groups.setdefault(tuple(row[name] for name in about), []).append(row)
    for key, own in groups.items():
        yield dict(zip(about, key, strict=True)), own
