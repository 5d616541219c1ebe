"""Several configs trained on the same data: their validation figures against steps and time.

Time is that of training alone: steps times the seconds of a step. `measure` measures them for all
variants in turn, so validation and other work on the machine during the runs do not count.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from defvis.config import Config
from defvis.data.dataset import YouTubeVIS
from defvis.training import log
from defvis.training.distributed import World
from defvis.training.plots import label
from defvis.training.trainer import Trainer

FIGURES = ("AP", "AP50", "AP75")
# Lines of the log per point: losses are drawn as running means.
_SMOOTHED = 5


@dataclass(frozen=True)
class Curve:
    """One run: points (step, value).

    Attributes:
        figures: By name, of the validations.
        loss: The weighted sum, as logged.
    """

    figures: dict[str, list[tuple[int, float]]]
    loss: list[tuple[int, float]]


@dataclass(frozen=True)
class Variant:
    """One config and its runs.

    Attributes:
        parameters: Weights of the model.
        seconds: Of a training step, from each round of `measure`.
        runs: By seed.
    """

    parameters: int
    seconds: list[float]
    runs: dict[int, Curve]

    @property
    def step_seconds(self) -> float:
        """Seconds of a training step."""
        return statistics.median(self.seconds)

    def minutes(self, steps: float) -> float:
        """Training time of a number of steps."""
        return steps * self.step_seconds / 60

    @property
    def total_minutes(self) -> float:
        """Training time of the longest run."""
        return self.minutes(max(run.figures["AP"][-1][0] for run in self.runs.values()))

    def at(self, name: str, minutes: float) -> list[float]:
        """A figure of each run after a training time, linear between two validations."""
        steps = 60 * minutes / self.step_seconds
        return [interpolate(run.figures[name], steps) for run in self.runs.values()]


def read_curve(folder: Path) -> Curve:
    """Reads the log of a finished run; its last validation took all videos.

    Raises:
        ValueError: Validations before the last one took other videos than it.
    """
    rows = [row for row in log.read(folder / "log.jsonl") if row["stage"] == "joint"]
    validations = [row for row in rows if row["kind"] == "val"]
    if len({row["videos"] for row in validations}) > 1:
        raise ValueError(
            f"{folder} was validated on different numbers of videos; set eval_videos to all of them"
        )
    return Curve(
        {name: [(row["step"], row[name]) for row in validations] for name in FIGURES},
        [(row["step"], row["total"]) for row in rows if row["kind"] == "train"],
    )


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear interpolation between points; beyond the last, the value of the last.

    Before the first point it is between 0 and that point's: an untrained model has AP 0.
    """
    before = (0.0, 0.0)
    for point in points:
        if at <= point[0]:
            share = (at - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


def measure(
    configs: Mapping[str, Config],
    train: YouTubeVIS,
    val: YouTubeVIS,
    rounds: int,
    steps: int,
    device: torch.device,
) -> dict[str, tuple[int, list[float]]]:
    """Times some steps of every config, one config after the other, in several rounds.

    Args:
        configs: By name.
        train: As for the runs.
        val: Likewise.
        rounds: At least 1.
        steps: Of training in a round, at least 1, after those that warm up.
        device: Where the runs were trained.

    Returns:
        By name: parameters of the model, and seconds of a step in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    parameters = {}
    for _ in range(rounds):
        for name, config in configs.items():
            with tempfile.TemporaryDirectory() as scratch:
                world = World(device=device)
                trainer = Trainer(config, train, val, Path(scratch), progress=False, world=world)
                seconds[name].append(trainer.profile(steps).step)
                parameters[name] = trainer.num_parameters
    return {name: (parameters[name], seconds[name]) for name in configs}


def to_table(variants: Mapping[str, Variant]) -> str:
    """A Markdown table; means over the seeds, and in brackets the range where there are several.

    The columns of equal time compare at the moment when the fastest variant's runs end.
    """
    moment = min(variant.total_minutes for variant in variants.values())
    header = [
        *("variant", "parameters", "s per step", "seeds", "steps", *FIGURES),
        *(f"{name} after {moment:.1f} min" for name in FIGURES),
    ]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for name, variant in variants.items():
        runs = variant.runs.values()
        ends = [[run.figures[figure][-1][1] for run in runs] for figure in FIGURES]
        cells = [
            *(name, f"{variant.parameters:,}", f"{variant.step_seconds:.3f}"),
            *(str(len(runs)), str(max(run.figures["AP"][-1][0] for run in runs))),
            *(spread(values) for values in ends),
            *(spread(variant.at(figure, moment)) for figure in FIGURES),
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and in brackets the range where there are several; .1 for 0.1, no minus zero."""
    mean, low, high = (
        f"{round(value, digits) + 0:.{digits}f}".removeprefix("0")
        for value in (statistics.mean(values), min(values), max(values))
    )
    return mean if len(values) == 1 else f"{mean} [{low}, {high}]"


def to_json(variants: Mapping[str, Variant]) -> str:
    """All numbers of `to_table` and `draw`, with losses as means over pairs of lines of the log."""
    plain = {name: dataclasses.asdict(variant) for name, variant in variants.items()}
    for variant in plain.values():
        for run in variant["runs"].values():
            pairs = zip(run["loss"][::2], run["loss"][1::2], strict=False)
            run["loss"] = [(step, (first + loss) / 2) for (_, first), (step, loss) in pairs]
    return _to_lines(plain)


def _to_lines(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of a dictionary; lists stay on one line."""
    if isinstance(value, dict):
        inner = indent + " "
        entries = (f'{inner}"{name}": {_to_lines(entry, inner)}' for name, entry in value.items())
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    return json.dumps(value)


def draw(variants: Mapping[str, Variant], path: Path) -> None:
    """Draws loss against steps, AP against steps and AP against minutes; a line for each run."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, by_steps, by_time = figure.subplots(1, 3)
    for number, (name, variant) in enumerate(variants.items()):
        for order, run in enumerate(variant.runs.values()):
            style = {"color": f"C{number}", "label": label(name, number) if order == 0 else None}
            loss.plot(*_smoothed(run.loss), **style)
            steps, values = zip(*run.figures["AP"], strict=True)
            by_steps.plot(steps, values, "o-", markersize=4, **style)
            by_time.plot([variant.minutes(s) for s in steps], values, "o-", markersize=4, **style)
    loss.set(xlabel="steps", ylabel="loss", yscale="log", title="Training loss")
    by_steps.set(xlabel="steps", ylabel="AP", ylim=(0, None), title="Validation, by steps")
    by_time.set(xlabel="minutes of training", ylabel="AP", ylim=(0, None), title="... by time")
    for axes in (by_steps, by_time):
        axes.grid(alpha=0.3)
    by_steps.legend()
    figure.savefig(path, dpi=110)


def _smoothed(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    steps, values = zip(*points, strict=True)
    means = [statistics.mean(values[max(0, i - _SMOOTHED + 1) : i + 1]) for i in range(len(values))]
    return list(steps), means
