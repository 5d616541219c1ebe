"""The stages of `gpu-check` that take times: operators, kernels, models, the GPU's own limits."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks import metrics
from benchmarks.commands.defvis import Subjects
from benchmarks.costs import gpu_roofline
from benchmarks.gpu import plan
from benchmarks.gpu.stage import Stage, first_line
from benchmarks.measure import kernel_times
from benchmarks.measure.rows import Row
from benchmarks.subjects.defvis_model import PARTS
from benchmarks.subjects.registry import IMPLEMENTATIONS

_CEILING_ROUNDS = 5
_MODEL_SECONDS = 8  # for a part of the models
_PROFILED = (
    ("paper-encoder", "float32"),
    ("paper-encoder", "bfloat16"),
    ("detr-encoder", "float32"),
)


def usual(stage: Stage) -> bool:
    """What the targets are about, and a little more."""
    return _time_cases(stage, plan.usual(stage.quick))


def matrix(stage: Stage) -> bool:
    """Every dtype, batch and spread."""
    return _time_cases(stage, plan.matrix(stage.quick))


def models(stage: Stage) -> bool:
    """Deformable VisTR and VisTR, whole: frames per second, a training step, memory."""

    @functools.cache
    def subjects(precision: str) -> Subjects:
        return Subjects(stage.quick, precision, stage.device, seed=0)

    def measure(part: str, precision: str) -> Iterator[Row]:
        seconds = 0 if stage.quick else _MODEL_SECONDS
        yield from subjects(precision).measure(part, torch.get_num_threads(), seconds=seconds)

    def run(part: str, precision: str) -> bool:
        stage.add(measure(part, precision))
        return True

    turns = [
        Turn(f"{part}, {precision}", functools.partial(run, part, precision))
        for part in PARTS
        for precision in ("fp32", "bf16")
    ]
    return _in_turn(stage, turns)


def _time_cases(stage: Stage, cases: Sequence[plan.Case]) -> bool:
    """Times cases in order; whether all were right."""
    return _in_turn(
        stage,
        [
            Turn(case.label, functools.partial(_time_case, case, stage), case.seconds)
            for case in cases
        ],
    )


class Turn(NamedTuple):
    """One measurement of a stage; its failure does not stop the others.

    Attributes:
        label: Unique in its stage.
        run: Measures; True if every answer was right.
        seconds: Expected, where that is more than the turns before it take.
    """

    label: str
    run: Callable[[], bool]
    seconds: float = 0


def _in_turn(stage: Stage, turns: Sequence[Turn]) -> bool:
    """Takes turns in order, and names what does not fit in the time; whether all were right."""
    tried = stage.read()["tried"]
    longest, late = 0.0, []
    for turn in turns:
        if turn.label in tried:
            continue
        if max(longest, turn.seconds) > stage.left:
            late.append(turn.label)
            continue
        print(f"   {turn.label}", flush=True)
        began = time.monotonic()
        with stage.trying(turn.label):
            if turn.run():
                stage.write(done=turn.label)
        longest = max(longest, time.monotonic() - began)
    if late:
        stage.note(f"no time for {len(late)}: {'; '.join(late)}")
    found = stage.read()
    return bool(found["done"]) and found["tried"] == found["done"]


def _time_case(case: plan.Case, stage: Stage) -> bool:
    """A row of every variant and mode; whether ours was right."""
    job = metrics.Job(
        case.workload,
        ("latency",),
        case.variants,
        threads=torch.get_num_threads(),
        rounds=stage.rounds,
        modes=case.modes,
        device=stage.device,
        note=lambda name, error: stage.note(f"{case.label}: {name}: {first_line(error)}"),
        is_detailed=True,
    )
    return not any("wrong" in row for row in stage.add(metrics.measure(job)))


def kernels(stage: Stage) -> bool:
    """The time of every kernel that our forward and backward launch."""
    for name, dtype in [("tiny", "float32")] if stage.quick else _PROFILED:
        workload = plan.adapt(name, dtype=dtype)
        prepared = IMPLEMENTATIONS["native"].prepare(workload, 0).to(stage.device)
        for mode in ("forward", "backward"):
            rows = kernel_times.measure(prepared.call(mode), stage.device)
            about = {"measurement": "kernels", "label": workload.label, "mode": mode}
            stage.add({**about, **row} for row in rows)
    return True


def ceilings(stage: Stage) -> bool:
    """What the GPU could give at most, for the shares on the page."""
    if stage.device == "cpu":
        stage.note("left out: it needs a GPU")
        return True
    for name, rate in gpu_roofline.measure(_CEILING_ROUNDS):
        print(f"   {name}: {rate['median'] / 1e9:.0f} G/s", flush=True)
        stage.add([{"measurement": "device ceiling", "label": name, "per_second": rate}])
    return True
