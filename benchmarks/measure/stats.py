"""Medians and quartiles, ratios of rounds, exponents of power laws, and where two costs meet."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_RESAMPLES = 1000


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of at least one sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, q1, q3)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratio per round: both were measured within moments of each other."""
    return [n / d for n, d in zip(numerators, denominators, strict=True)]


def shared(*samples: Sequence[float]) -> list[Sequence[float]]:
    """Samples of the rounds that all tasks took part in."""
    rounds = min(map(len, samples))
    return [own[:rounds] for own in samples]


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
    """The median of the exponents of all rounds; the interval is a bootstrap over rounds.

    Args:
        rounds: Costs by size, equally many of each; those of one round were measured in turn.
        seed: Of the bootstrap.
    """
    draws = random.Random(seed)
    slopes = [
        slope(dict(zip(rounds, costs, strict=True))) for costs in zip(*rounds.values(), strict=True)
    ]
    drawn = sorted(
        statistics.median(draws.choices(slopes, k=len(slopes))) for _ in range(_RESAMPLES)
    )
    edge = _RESAMPLES // 40
    return Exponent(statistics.median(slopes), drawn[edge], drawn[-edge - 1])


def crossover(gains: Mapping[float, float]) -> float | None:
    """The size from which on the gain, how many times cheaper something is, stays above 1.

    Between the measured sizes the gain is taken for a power law.

    Returns:
        None if it is not above 1 at the largest size; the smallest size if it always is.
    """
    sizes = sorted(gains)
    logs = [math.log(gains[size]) for size in sizes]
    if logs[-1] <= 0:
        return None
    for i in range(len(sizes) - 1, 0, -1):
        if logs[i - 1] <= 0:
            share = logs[i - 1] / (logs[i - 1] - logs[i])
            return float(sizes[i - 1] * (sizes[i] / sizes[i - 1]) ** share)
    return sizes[0]
