"""What can be measured of a workload: each metric yields its rows, answers checked first."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.costs import cpu_roofline, traffic
from benchmarks.measure import at_once, compiled, environment, isolated
from benchmarks.measure.memory import MALLOC, Peak, peak_of
from benchmarks.measure.rows import ALL_MODES, MODES, Row
from benchmarks.measure.stats import ratios, spread
from benchmarks.measure.timing import CpuClock, Task, clock_of, compare, interleave
from benchmarks.subjects.base import BackwardOnceError, Case
from benchmarks.subjects.correctness import find_errors
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.sdpa import backend_of
from benchmarks.workloads import WORKLOADS, Inputs, Workload, make_inputs

CALL = WORKLOADS["four-elements"]  # on which the cost of a call itself is measured
_THREADS = (1, 2, 4, 8)  # torch's, whatever the machine has
_PROCESSES = (1, 2, 4)  # at once
_PROCESS_ROUNDS = 9


@dataclass(frozen=True)
class Job:
    """One workload, what is measured of it, and how long."""

    workload: Workload
    metrics: tuple[str, ...]  # names in `METRICS`
    variants: tuple[str, ...]  # names in `IMPLEMENTATIONS`; ratios are to the first
    threads: int
    seconds: float = 0  # about, for the timed rounds of one mode
    rounds: int | None = None  # exactly, instead
    seed: int = 0
    modes: tuple[str, ...] = ALL_MODES  # that latency is taken in
    device: str = "cpu"
    # Takes the error of each variant that answers wrongly: then only the first is still timed, its
    # rows marked. None: the first wrong answer is raised.
    note: Callable[[str, Exception], None] | None = None
    # Whether rows of latency also say what our kernels move, and where dense attention ran.
    is_detailed: bool = False
    # Variants with right answers, by name and workload; jobs of a run share it.
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
    for metric in job.metrics:
        for row in METRICS[metric](job):
            workload = row.pop("workload")
            yield {
                "measurement": metric,
                **about(workload, job.threads),
                "subject": job.subject,
                **row,
            }


def about(workload: Workload, threads: int) -> Row:
    """The fields of a row that say what was run."""
    sizes, load = dataclasses.asdict(workload), environment.load_average()
    return {"workload": sizes, "label": workload.label, "threads": threads, "load_average": load}


def _latency(job: Job) -> Iterator[Row]:
    """Every variant on the workload."""
    variants, errors = _prepare(job, job.workload, job.variants)
    clock = clock_of(job.device)
    for mode in job.modes:
        tasks = _tasks(variants, mode, job.threads)
        for name, figures in compare(tasks, clock, seconds=job.seconds, rounds=job.rounds):
            row = {"workload": job.workload, "variant": name, "mode": mode, **figures}
            if name in errors:
                row["wrong"] = str(errors[name]).partition("\n")[0]
            if job.is_detailed:
                row |= _details(job.workload, name, mode, variants[name])
            yield row


def _details(workload: Workload, name: str, mode: str, prepared: Case) -> Row:
    """What our kernels move, or which backend dense attention ran on."""
    if name == "dense":
        run = "forward" if mode == "forward" else "forward+backward"
        return {"backend": backend_of(prepared.call(run))}
    if name != "native":
        return {}
    inputs = Inputs(*(tensor.detach() for tensor in (*prepared.inputs, prepared.grad_out)))
    if mode == "forward":
        return {
            "gathered_bytes": traffic.corner_bytes(workload, inputs),
            "compulsory_bytes": traffic.compulsory_bytes(inputs),
        }
    if mode == "backward":
        count, how = traffic.added_numbers(workload, inputs)
        return {"added_numbers": count, "added": how}
    return {}


def _overhead(job: Job) -> Iterator[Row]:
    """The subject where there is next to nothing to compute."""
    brief = dataclasses.replace(
        job, workload=CALL, variants=(job.subject,), seconds=job.seconds / 10
    )
    yield from _latency(brief)


def _scaling(job: Job) -> Iterator[Row]:
    """The subject with all threads and with one: the ratio is what the others bring."""
    prepared, _ = _prepare(job, job.workload, (job.subject,))
    counts = {"all": job.threads, "one": 1}
    for mode in ALL_MODES:
        tasks = [
            dataclasses.replace(task, name=which, threads=threads)
            for task in _tasks(prepared, mode, job.threads)
            for which, threads in counts.items()
        ]
        for which, figures in compare(tasks, seconds=job.seconds / 4, rounds=job.rounds):
            row = {"workload": job.workload, "variant": job.subject, "mode": mode, **figures}
            yield {**row, "threads": counts[which]}


def _threads(job: Job) -> Iterator[Row]:
    """The subject with few and many threads, then in several processes at once."""
    prepared, _ = _prepare(job, job.workload, (job.subject,))
    for mode in filter(job.modes.__contains__, MODES):
        tasks = [
            dataclasses.replace(task, name=str(threads), threads=threads)
            for task in _tasks(prepared, mode, job.threads)
            for threads in _THREADS
        ]
        clock = CpuClock(of_process=True)
        samples = interleave(tasks, clock, seconds=job.seconds / 4, rounds=job.rounds)
        best = min(samples, key=lambda name: statistics.median(samples[name]["wall"]))
        for name, own in samples.items():
            yield {
                "workload": job.workload,
                "variant": job.subject,
                "mode": mode,
                "threads": int(name),
                "seconds": dataclasses.asdict(spread(own["wall"])),
                "rounds": own["wall"],
                "ratio": _ratio(f"{best} threads", own["wall"], samples[best]["wall"]),
                "busy": dataclasses.asdict(spread(ratios(own["seconds"], own["wall"]))),
            }
        yield from _processes(job, mode)


def _processes(job: Job, mode: str) -> Iterator[Row]:
    """Of several processes at once, each with the threads of the job.

    The ratio is of the machine's time for a call: that of a process over the number of processes.
    """
    request: Row = {"workload": dataclasses.asdict(job.workload), "variant": job.subject}
    request |= {"mode": mode, "threads": job.threads, "seed": job.seed}
    request |= {"counts": _PROCESSES, "rounds": job.rounds, "seconds": job.seconds / 4}
    answers, problem = isolated.call(f"{__name__}:processes_here", request)
    if problem:
        raise RuntimeError(f"processes at once could not be measured: {problem}")
    machine = [
        [seconds / processes for seconds in answer["seconds"]]
        for processes, answer in zip(_PROCESSES, answers, strict=True)
    ]
    for processes, answer, own in zip(_PROCESSES, answers, machine, strict=True):
        yield {
            "workload": job.workload,
            "variant": f"{job.subject}, processes at once: {processes}",
            "mode": mode,
            "seconds": dataclasses.asdict(spread(answer["seconds"])),
            "rounds": answer["seconds"],
            "ratio": _ratio(f"{_PROCESSES[0]} processes", own, machine[0]),
            "busy": dataclasses.asdict(spread(answer["busy"])),
        }


def _ratio(to: str, own: Sequence[float], others: Sequence[float]) -> Row:
    return {"to": to, **dataclasses.asdict(spread(ratios(own, others)))}


def _growth(job: Job) -> Iterator[Row]:
    """The subject on the workload and on twice as many cells, and so queries."""
    workloads = {each.name: each for each in (job.workload, job.workload.doubled())}
    prepared = {
        name: _prepare(job, workload, (job.subject,))[0][job.subject]
        for name, workload in workloads.items()
    }
    for mode in ALL_MODES:
        tasks = _tasks(prepared, mode, job.threads)
        for name, figures in compare(tasks, seconds=job.seconds / 4, rounds=job.rounds):
            row = {"workload": workloads[name], "variant": job.subject, "mode": mode}
            yield {**row, **figures}


def _memory(job: Job) -> Iterator[Row]:
    """Every variant's peak, each in a process of its own."""
    _prepare(job, job.workload, job.variants)
    for mode in MODES:
        peaks = {
            name: measure_peak(job.workload, name, mode, job.threads, job.seed)
            for name in job.variants
        }
        first = peaks[job.subject].extra_bytes
        for name, peak in peaks.items():
            share = peak.extra_bytes / first if first else None
            yield {
                "workload": job.workload,
                "variant": name,
                "mode": mode,
                **dataclasses.asdict(peak),
                "ratio": {"to": job.subject, "median": share},
            }


def _bandwidth(job: Job) -> Iterator[Row]:
    """Corner rows the subject's forward reads per second, and what caches and memory can give."""
    workload, threads = job.workload, job.threads
    prepared = _prepare(job, workload, (job.subject,))[0][job.subject]
    if not IMPLEMENTATIONS[job.subject].is_operator or compiled.compiler() is None:
        print("   bandwidth: left out, it needs our operator and a C++ compiler", flush=True)
        return
    task = Task(job.subject, prepared.forward, threads)
    samples = interleave([task], seconds=job.seconds / 10, rounds=job.rounds)[task.name]
    inputs = make_inputs(workload, job.seed)
    total = traffic.corner_bytes(workload, inputs)
    rows = traffic.corner_rows(workload, inputs, batch=0, head=0)
    row_bytes = workload.head_dim * inputs.value.element_size()
    rates = spread([total / each for each in samples["seconds"]])
    yield {
        "workload": workload,
        "variant": job.subject,
        "mode": "forward",
        "corner_bytes": total,
        "bytes_per_second": dataclasses.asdict(rates),
        "ceiling": {
            "same rows": cpu_roofline.rows_bandwidth(rows, workload.num_cells, row_bytes, threads),
            **cpu_roofline.stream_bandwidths(threads),
        },
        "ceiling_vector_bytes": cpu_roofline.vector_bytes(),
    }


METRICS: dict[str, Callable[[Job], Iterator[Row]]] = {
    "latency": _latency,
    "memory": _memory,
    "bandwidth": _bandwidth,
    "scaling": _scaling,
    "threads": _threads,
    "growth": _growth,
    "overhead": _overhead,
}
ON_CUDA = ("latency",)  # the others are about a processor


def _prepare(
    job: Job, workload: Workload, names: Sequence[str]
) -> tuple[dict[str, Case], dict[str, Exception]]:
    """Builds variants, and checks those that have not been checked on this workload yet.

    Returns:
        The variants to measure, and the error of the first of them if it is tolerated.
    """
    variants = {name: IMPLEMENTATIONS[name].prepare(workload, job.seed) for name in names}
    if job.device != "cpu":
        variants = {name: prepared.to(job.device) for name, prepared in variants.items()}
    fresh = {name: each for name, each in variants.items() if (name, workload) not in job.checked}
    errors = find_errors(workload, fresh, gradients=job.modes != ("forward",))
    for name, error in errors.items():
        if job.note is None:
            raise error
        job.note(name, error)
        if name != names[0]:
            del variants[name]
    job.checked.update((name, workload) for name in fresh if name not in errors)
    return variants, errors


def _tasks(prepared: Mapping[str, Case], mode: str, threads: int) -> list[Task]:
    """What is timed in turn.

    A variant without this mode is left out and named, and everything with the first: the others'
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


# -- in a process of its own ------------------------------------------------------


def measure_peak(workload: Workload, variant: str, mode: str, threads: int, seed: int) -> Peak:
    """Starts a fresh process and measures one call of `variant` in it.

    Args:
        workload: What it is called on.
        variant: Name in `IMPLEMENTATIONS`.
        mode: One of `MODES`.
        threads: torch's threads.
        seed: Of the inputs.

    Raises:
        RuntimeError: The process failed, or this system has no /proc.
    """
    request: Row = {"workload": dataclasses.asdict(workload), "variant": variant}
    request |= {"mode": mode, "threads": threads, "seed": seed}
    peaks, problem = isolated.call(f"{__name__}:peak_here", request, environment=MALLOC)
    if problem:
        raise RuntimeError(f"memory of {variant} could not be measured: {problem}")
    return Peak(**peaks[0])


def peak_here(
    workload: dict[str, Any], variant: str, mode: str, threads: int, seed: int
) -> Iterator[Row]:
    """The peak in this process, which has to be fresh; arguments as of `measure_peak`.

    The same kind of call runs before on a handful of cells, or a compiled variant on the workload
    itself, so that libraries are loaded and threads are started.
    """
    problem = _workload(workload)
    torch.set_num_threads(threads)
    implementation = IMPLEMENTATIONS[variant]
    prepared = implementation.prepare(problem, seed)
    little = implementation.prepare(problem.shrunk(), seed)
    (prepared if implementation.is_compiled else little).call(mode)()
    torch.ones(1 << 20).sum()  # starts the pool of threads, which the little problem may not
    yield dataclasses.asdict(peak_of(prepared.call(mode)))


def processes_here(
    workload: dict[str, Any],
    variant: str,
    mode: str,
    threads: int,
    seed: int,
    counts: Sequence[int],
    rounds: int | None,
    seconds: float,
) -> Iterator[Row]:
    """Numbers of processes in turn, forked from this process, which has to be fresh.

    Args:
        workload: The fields of the workload that each calls `variant` on.
        variant: Name in `IMPLEMENTATIONS`.
        mode: One of `MODES`.
        threads: torch's threads in each process.
        seed: Of the inputs.
        counts: How many processes at once.
        rounds: How often each number has its turn, for a tenth of a second; None for `seconds`.
        seconds: Of all turns together.

    Yields:
        For each number the seconds of a call and the processors kept busy, one of each per turn.
    """
    torch.set_num_threads(1)
    run = IMPLEMENTATIONS[variant].prepare(_workload(workload), seed).call(mode)
    turns = rounds or _PROCESS_ROUNDS
    each = 0.1 if rounds else seconds / (turns * len(counts))
    found: list[list[tuple[float, float]]] = [[] for _ in counts]
    for _ in range(turns):
        for processes, own in zip(counts, found, strict=True):
            own.append(at_once.measure(run, processes=processes, threads=threads, seconds=each))
    for own in found:
        of_calls, busy = zip(*own, strict=True)
        yield {"seconds": of_calls, "busy": busy}


def _workload(fields: Row) -> Workload:
    """A workload that travelled as JSON."""
    shapes = tuple(tuple(shape) for shape in fields["spatial_shapes"])
    return Workload(**{**fields, "spatial_shapes": shapes})
