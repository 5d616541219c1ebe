"""What can be asked about a workload: each measurement yields its rows, answers checked first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.costs import cpu_roofline, traffic
from benchmarks.measure import compiled, environment
from benchmarks.measure.memory import measure_peak
from benchmarks.measure.timing import Task, interleave, ratios, shared, spread
from benchmarks.report.bars import Row
from benchmarks.subjects.base import ALL_MODES, MODES, BackwardOnceError, Case
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload, make_inputs

CALL = WORKLOADS["four-elements"]  # on which the cost of a call itself is measured


@dataclass(frozen=True)
class Job:
    """One workload, what is asked about it, and how hard to look.

    Attributes:
        workload: What is run.
        measurements: Names in `MEASUREMENTS`.
        variants: Names in `IMPLEMENTATIONS`; ratios are to the first.
        threads: torch's threads.
        seconds: About how long the timed rounds of one mode take.
        rounds: Exactly so many rounds instead.
        seed: Of the inputs.
        modes: Of `ALL_MODES`: those that latency is taken in.
        checked: Which variants have answered rightly on which workloads; jobs of a run share it.
    """

    workload: Workload
    measurements: tuple[str, ...]
    variants: tuple[str, ...]
    threads: int
    seconds: float
    rounds: int | None
    seed: int
    modes: tuple[str, ...] = ALL_MODES
    checked: set[tuple[str, Workload]] = field(default_factory=set, compare=False)

    @property
    def subject(self) -> str:
        """The variant that the others are compared with."""
        return self.variants[0]


def measure(job: Job) -> Iterator[Row]:
    """All rows of a job, each as soon as it is measured.

    Raises:
        WrongAnswerError: A variant computes something else; it was not timed.
    """
    for measurement in job.measurements:
        for row in MEASUREMENTS[measurement](job):
            workload = row.pop("workload")
            yield {
                "measurement": measurement,
                "workload": dataclasses.asdict(workload),
                "label": workload.label,
                "subject": job.subject,
                "threads": job.threads,
                "load_average": environment.load_average(),
                **row,
            }


def _latency(job: Job) -> Iterator[Row]:
    """Every variant on the workload."""
    variants = _prepare(job, job.workload, job.variants)
    for mode in job.modes:
        tasks = _tasks(variants, mode, job.threads)
        for name, figures in compare(tasks, job.seconds, job.rounds):
            yield {"workload": job.workload, "variant": name, "mode": mode, **figures}


def _overhead(job: Job) -> Iterator[Row]:
    """The subject where there is next to nothing to compute."""
    brief = dataclasses.replace(
        job, workload=CALL, variants=(job.subject,), seconds=job.seconds / 10
    )
    yield from _latency(brief)


def _scaling(job: Job) -> Iterator[Row]:
    """The subject with all threads and with one: the ratio is what the others bring."""
    job = dataclasses.replace(job, seconds=job.seconds / 4)
    prepared = _prepare(job, job.workload, (job.subject,))
    counts = {"all": job.threads, "one": 1}
    for mode in ALL_MODES:
        tasks = [
            dataclasses.replace(task, name=which, threads=threads)
            for task in _tasks(prepared, mode, job.threads)
            for which, threads in counts.items()
        ]
        for which, figures in compare(tasks, job.seconds, job.rounds):
            row = {"workload": job.workload, "variant": job.subject, "mode": mode, **figures}
            yield {**row, "threads": counts[which]}


def _growth(job: Job) -> Iterator[Row]:
    """The subject on the workload and on twice as many cells, and so queries."""
    job = dataclasses.replace(job, seconds=job.seconds / 4)
    workloads = {each.name: each for each in (job.workload, job.workload.doubled())}
    prepared = {
        name: _prepare(job, workload, (job.subject,))[job.subject]
        for name, workload in workloads.items()
    }
    for mode in ALL_MODES:
        tasks = _tasks(prepared, mode, job.threads)
        for name, figures in compare(tasks, job.seconds, job.rounds):
            row = {"workload": workloads[name], "variant": job.subject, "mode": mode}
            yield {**row, **figures}


def _memory(job: Job) -> Iterator[Row]:
    """Every variant's peak, each in a process of its own."""
    _prepare(job, job.workload, job.variants)
    for mode in MODES:
        peaks = {
            name: measure_peak(job.workload, name, mode, threads=job.threads, seed=job.seed)
            for name in job.variants
        }
        first = peaks[job.subject].extra_bytes
        for name, peak in peaks.items():
            share = peak.extra_bytes / first if first else None
            yield {
                "workload": job.workload,
                "variant": name,
                "mode": mode,
                "extra_bytes": peak.extra_bytes,
                "method": peak.method,
                "ratio": {"to": job.subject, "median": share},
            }


def _bandwidth(job: Job) -> Iterator[Row]:
    """Corner rows the subject's forward reads per second, and what caches and memory can give."""
    workload, threads = job.workload, job.threads
    prepared = _prepare(job, workload, (job.subject,))[job.subject]
    if not IMPLEMENTATIONS[job.subject].is_operator or compiled.compiler() is None:
        print("   bandwidth: left out, it needs our operator and a C++ compiler", flush=True)
        return
    task = Task(job.subject, prepared.forward, threads)
    seconds = interleave([task], budget_seconds=job.seconds / 10, rounds=job.rounds)[task.name]
    inputs = make_inputs(workload, job.seed)
    total = traffic.corner_bytes(workload, inputs)
    rows = traffic.corner_rows(workload, inputs, batch=0, head=0)
    row_bytes = workload.head_dim * inputs.value.element_size()
    yield {
        "workload": workload,
        "variant": job.subject,
        "mode": "forward",
        "corner_bytes": total,
        "bytes_per_second": dataclasses.asdict(spread([total / each for each in seconds])),
        "ceiling": {
            "same rows": cpu_roofline.rows_bandwidth(rows, workload.num_cells, row_bytes, threads),
            **cpu_roofline.stream_bandwidths(threads),
        },
        "ceiling_vector_bytes": cpu_roofline.vector_bytes(),
    }


MEASUREMENTS: dict[str, Callable[[Job], Iterator[Row]]] = {
    "latency": _latency,
    "memory": _memory,
    "bandwidth": _bandwidth,
    "scaling": _scaling,
    "growth": _growth,
    "overhead": _overhead,
}


def _prepare(job: Job, workload: Workload, names: Sequence[str]) -> dict[str, Case]:
    """Builds variants, and checks those that have not been checked on this workload yet."""
    variants = {name: IMPLEMENTATIONS[name].prepare(workload, job.seed) for name in names}
    fresh = {name: each for name, each in variants.items() if (name, workload) not in job.checked}
    check_correctness(workload, fresh)
    job.checked.update((name, workload) for name in fresh)
    return variants


def _tasks(prepared: Mapping[str, Case], mode: str, threads: int) -> list[Task]:
    """What is timed in turn.

    What has no such mode is left out and named, and everything with the first: the others'
    ratios are to it.
    """
    tasks: list[Task] = []
    for name, each in prepared.items():
        try:
            tasks.append(Task(name, each.call(mode), threads))
        except BackwardOnceError as error:
            others = "" if tasks or len(prepared) == 1 else " and of all that is compared with it"
            print(f"   {mode} of {name}{others} is left out: {error}", flush=True)
            if not tasks:
                break
    return tasks


def compare(
    tasks: Sequence[Task], seconds: float, rounds: int | None, slow_rounds: int | None = None
) -> Iterator[tuple[str, Row]]:
    """Times tasks in turn: each one's name, its times, and their ratio to the first one's.

    Args:
        tasks: What to time; with none there is nothing to do.
        seconds: About how long.
        rounds: Exactly so many rounds instead.
        slow_rounds: As `interleave` takes it.
    """
    if not tasks:
        return
    samples = interleave(tasks, budget_seconds=seconds, rounds=rounds, slow_rounds=slow_rounds)
    first = tasks[0].name
    for task in tasks:
        own = samples[task.name]
        ratio = spread(ratios(*shared(own, samples[first])))
        yield (
            task.name,
            {
                "seconds": dataclasses.asdict(spread(own)),
                "rounds": own,
                "ratio": {"to": first, **dataclasses.asdict(ratio)},
            },
        )
