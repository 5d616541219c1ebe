"""`python -m benchmarks operator`: speed, memory and bandwidth of the operator."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stdeform.functional import resolve_backend

from . import ceiling, environment, report, traffic
from .answers import check_answers
from .bars import Row
from .memory import measure_peak
from .timing import Task, interleave, ratios, spread
from .variants import MODES, VARIANTS
from .workloads import DTYPES, WORKLOADS, Workload, make_inputs

MEASUREMENTS = ("latency", "memory", "bandwidth", "scaling", "growth", "overhead")
_USUAL = ("latency", "memory", "bandwidth")
_BUSY = 0.25  # load average per core from which a run says that it is not alone
_SCHEMA = 1  # of a row; raised when a field changes its meaning


@dataclass(frozen=True)
class Job:
    """One workload, what is asked about it, and how hard to look.

    Attributes:
        workload: What is run.
        measurements: Some of `MEASUREMENTS`.
        variants: Names in `VARIANTS`; ratios are to the first.
        threads: torch's threads.
        seconds: About how long the timed rounds of one mode take.
        rounds: Exactly so many rounds instead.
        seed: Of the inputs.
    """

    workload: Workload
    measurements: tuple[str, ...]
    variants: tuple[str, ...]
    threads: int
    seconds: float
    rounds: int | None
    seed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument(
        "workloads",
        nargs="*",
        type=_workload_name,
        metavar="WORKLOAD",
        help=f"some of {', '.join(WORKLOADS)}; by default paper-encoder",
    )
    parser.add_argument(
        "--all", action="store_true", help="every measurement docs/benchmarks.md shows"
    )
    parser.add_argument(
        "--quick", action="store_true", help="every measurement on a tiny problem, in seconds"
    )
    parser.add_argument(
        "--measure",
        nargs="+",
        choices=MEASUREMENTS,
        default=_USUAL,
        help=f"by default {' '.join(_USUAL)}",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=("native", "composite", "dense"),
        help="what is timed in turn; ratios are to the first; by default native composite dense",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="instead of the workload's float32")
    parser.add_argument("--batch", type=_count, help="instead of the workload's 1")
    parser.add_argument(
        "--offset-spread", type=float, help="standard deviation of the offsets, in cells"
    )
    parser.add_argument(
        "--threads", type=_count, default=torch.get_num_threads(), help="by default torch's"
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="for the timed rounds of one mode; default 60"
    )
    parser.add_argument("--rounds", type=_count, help="exactly so many rounds instead")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; default 0")
    parser.add_argument(
        "--output", type=Path, help="write the rows here as JSON lines, each as it is measured"
    )


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Measures, prints every row, and at the end the tables and the bars.

    Returns:
        The exit status, 0.

    Raises:
        WrongAnswerError: A variant computes something else; it was not timed.
        SystemExit: The options contradict each other, or there is no native kernel.
    """
    _refuse_contradictions(options)
    about = {"schema": _SCHEMA, "suite": "operator", **environment.describe(arguments)}
    rows = []
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("")
    if about["load_average_at_start"] > _BUSY * about["cores"]:
        print("-- this machine is busy with other work: the figures will be off", flush=True)
    for job in _plan(options):
        print(f"-- {job.workload.label}: {', '.join(job.measurements)}", flush=True)
        for row in _measure(job):
            rows.append({**about, **row})
            print(report.line(rows[-1]), flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print("\n" + report.tables(rows))
    return 0


def _workload_name(text: str) -> str:
    if text not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(WORKLOADS)}, got {text}")
    return text


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.all + options.quick + bool(options.workloads) > 1:
        raise SystemExit("choose workloads, or --all, or --quick")
    if "native" in options.variants:
        try:
            resolve_backend("cpu", "native")
        except RuntimeError as error:
            raise SystemExit(
                f"{error}; without it: --variants reference composite dense"
            ) from error


# -- what to do --------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> list[Job]:
    job = functools.partial(
        Job,
        variants=tuple(options.variants),
        threads=options.threads,
        seconds=options.seconds,
        rounds=options.rounds,
        seed=options.seed,
    )
    if options.quick:
        tiny = _adapt(WORKLOADS["tiny"], options)
        return [job(tiny, MEASUREMENTS, seconds=0.5)]
    if options.all:
        encoder = WORKLOADS["paper-encoder"]
        bfloat16 = dataclasses.replace(encoder, dtype="bfloat16")
        return [
            job(encoder, MEASUREMENTS),
            job(bfloat16, _USUAL, seconds=options.seconds / 2),
            job(WORKLOADS["paper-decoder"], _USUAL, seconds=options.seconds / 4),
            job(WORKLOADS["detr-encoder"], _USUAL),
            job(WORKLOADS["paper-encoder-large"], _USUAL),
        ]
    names = options.workloads or ["paper-encoder"]
    return [job(_adapt(WORKLOADS[name], options), tuple(options.measure)) for name in names]


def _adapt(workload: Workload, options: argparse.Namespace) -> Workload:
    wished = {name: getattr(options, name) for name in ("dtype", "batch", "offset_spread")}
    return dataclasses.replace(
        workload, **{name: wish for name, wish in wished.items() if wish is not None}
    )


# -- how it is done ----------------------------------------------------------------------------


def _measure(job: Job) -> Iterator[Row]:
    for measurement in job.measurements:
        for row in _MEASURE[measurement](job):
            workload = row.pop("workload")
            yield {
                "measurement": measurement,
                "workload": dataclasses.asdict(workload),
                "label": workload.label,
                "subject": job.variants[0],
                "threads": job.threads,
                "load_average": environment.load_average(),
                **row,
            }


def _latency(job: Job) -> Iterator[Row]:
    """Every variant on the workload."""
    variants = {name: VARIANTS[name].prepare(job.workload, job.seed) for name in job.variants}
    check_answers(job.workload, variants)
    for mode in MODES:
        tasks = [
            Task(name, functools.partial(prepared.run, mode), job.threads)
            for name, prepared in variants.items()
        ]
        for name, figures in _compare(job, tasks):
            yield {"workload": job.workload, "variant": name, "mode": mode, **figures}


def _scaling(job: Job) -> Iterator[Row]:
    """The first variant with all threads and with one: the ratio is what the others bring."""
    job = dataclasses.replace(job, seconds=job.seconds / 4)
    name = job.variants[0]
    prepared = VARIANTS[name].prepare(job.workload, job.seed)
    check_answers(job.workload, {name: prepared})
    counts = {"all": job.threads, "one": 1}
    for mode in MODES:
        run = functools.partial(prepared.run, mode)
        tasks = [Task(which, run, threads) for which, threads in counts.items()]
        for which, figures in _compare(job, tasks):
            yield {
                "workload": job.workload,
                "variant": name,
                "mode": mode,
                **figures,
                "threads": counts[which],
            }


def _growth(job: Job) -> Iterator[Row]:
    """The first variant on the workload and on twice as many cells, and so queries."""
    job = dataclasses.replace(job, seconds=job.seconds / 4)
    name = job.variants[0]
    workloads = [job.workload, job.workload.doubled()]
    variants = [VARIANTS[name].prepare(workload, job.seed) for workload in workloads]
    for workload, prepared in zip(workloads, variants, strict=True):
        check_answers(workload, {name: prepared})
    for mode in MODES:
        tasks = [
            Task(workload.name, functools.partial(prepared.run, mode), job.threads)
            for workload, prepared in zip(workloads, variants, strict=True)
        ]
        for workload, (_, figures) in zip(workloads, _compare(job, tasks), strict=True):
            yield {"workload": workload, "variant": name, "mode": mode, **figures}


def _overhead(job: Job) -> Iterator[Row]:
    """Calls that have next to nothing to compute."""
    workload = WORKLOADS["four-elements"]
    brief = dataclasses.replace(
        job, workload=workload, variants=job.variants[:1], seconds=job.seconds / 10
    )
    yield from _latency(brief)


def _memory(job: Job) -> Iterator[Row]:
    for mode in MODES:
        peaks = {
            name: measure_peak(job.workload, name, mode, threads=job.threads, seed=job.seed)
            for name in job.variants
        }
        first = peaks[job.variants[0]].extra_bytes
        for name, peak in peaks.items():
            share = peak.extra_bytes / first if first else None
            yield {
                "workload": job.workload,
                "variant": name,
                "mode": mode,
                "extra_bytes": peak.extra_bytes,
                "method": peak.method,
                "ratio": {"to": job.variants[0], "median": share},
            }


def _bandwidth(job: Job) -> Iterator[Row]:
    """Corner rows the first variant's forward reads per second, and what the caches can give."""
    if ceiling.compiler() is None:
        print("   bandwidth: left out, the ceiling needs a C++ compiler", flush=True)
        return
    name = job.variants[0]
    workload = job.workload
    prepared = VARIANTS[name].prepare(workload, job.seed)
    task = Task(name, prepared.forward, job.threads)
    seconds = interleave([task], budget_seconds=job.seconds / 10, rounds=job.rounds)[name]
    inputs = make_inputs(workload, job.seed)
    total = traffic.corner_bytes(workload, inputs)
    rows = traffic.corner_rows(workload, inputs, batch=0, head=0)
    row_bytes = workload.head_dim * inputs.value.element_size()
    yield {
        "workload": workload,
        "variant": name,
        "mode": "forward",
        "corner_bytes": total,
        "bytes_per_second": dataclasses.asdict(spread([total / each for each in seconds])),
        "ceiling": {
            "same rows": ceiling.rows_bandwidth(rows, workload.num_cells, row_bytes, job.threads),
            **ceiling.cache_bandwidths(job.threads),
        },
        "ceiling_vector_bytes": ceiling.vector_bytes(),
    }


def _compare(job: Job, tasks: Sequence[Task]) -> Iterator[tuple[str, Row]]:
    samples = interleave(tasks, budget_seconds=job.seconds, rounds=job.rounds)
    first = tasks[0].name
    for task in tasks:
        own = samples[task.name]
        yield (
            task.name,
            {
                "seconds": dataclasses.asdict(spread(own)),
                "rounds": own,
                "ratio": {"to": first, **dataclasses.asdict(spread(ratios(own, samples[first])))},
            },
        )


_MEASURE: dict[str, Callable[[Job], Iterator[Row]]] = {
    "latency": _latency,
    "memory": _memory,
    "bandwidth": _bandwidth,
    "scaling": _scaling,
    "growth": _growth,
    "overhead": _overhead,
}
