"""How fast a cost grows: the exponent of a power law, and where two costs meet."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_RESAMPLES = 1000


@dataclass(frozen=True)
class Exponent:
    """Of cost = constant * size ** exponent; `low` to `high` is a 95 % confidence interval."""

    median: float
    low: float
    high: float


def slope(points: Mapping[float, float]) -> float:
    """The exponent of the power law through (size, cost), by least squares of the logarithms."""
    logs = [(math.log(size), math.log(cost)) for size, cost in points.items()]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def exponent(rounds: Mapping[float, Sequence[float]], seed: int = 0) -> Exponent:
    """Fits the medians of the rounds; the interval comes from drawing rounds anew (bootstrap).

    Args:
        rounds: Costs measured in each round, by size.
        seed: Of the draws.
    """
    draws = random.Random(seed)
    slopes = sorted(
        slope(
            {
                size: statistics.median(draws.choices(costs, k=len(costs)))
                for size, costs in rounds.items()
            }
        )
        for _ in range(_RESAMPLES)
    )
    fitted = slope({size: statistics.median(costs) for size, costs in rounds.items()})
    edge = _RESAMPLES // 40
    return Exponent(fitted, slopes[edge], slopes[-edge - 1])


def crossover(first: Mapping[float, float], second: Mapping[float, float]) -> float | None:
    """The size from which on the first cost stays below the second.

    Between the sizes that were measured both are taken for power laws.

    Returns:
        None if the first is not below at the largest size; the smallest size if it always is.
    """
    sizes = sorted(first)
    gaps = [math.log(first[size] / second[size]) for size in sizes]
    if gaps[-1] >= 0:
        return None
    for i in range(len(sizes) - 1, 0, -1):
        if gaps[i - 1] >= 0:
            share = gaps[i - 1] / (gaps[i - 1] - gaps[i])
            return float(sizes[i - 1] * (sizes[i] / sizes[i - 1]) ** share)
    return sizes[0]
