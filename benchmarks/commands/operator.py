"""`python -m benchmarks operator`: speed, memory and bandwidth of the operator."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from benchmarks.commands import showing
from benchmarks.measure import recording
from benchmarks.measure.rows import MODES, Row
from benchmarks.metrics import CALL, METRICS, ON_CUDA, Job, measure
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY
from benchmarks.workloads import DTYPES, WORKLOADS, Workload
from stdeform.functional import resolve_backend

_USUAL = ("latency", "memory", "bandwidth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    showing.add_workloads(parser, default="paper-encoder")
    parser.add_argument("--all", action="store_true", help="every table of the results")
    parser.add_argument(
        "--quick", action="store_true", help="every measurement on a tiny problem, in seconds"
    )
    parser.add_argument(
        "--measure",
        nargs="+",
        choices=METRICS,
        help=f"by default {' '.join(_USUAL)}; on a GPU {' and '.join(ON_CUDA)} alone",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=IMPLEMENTATIONS,
        help="what is timed in turn; ratios are to the first; by default native composite dense,"
        " and other libraries' operators that are installed; each only where it can",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="instead of the workload's float32")
    parser.add_argument("--batch", type=recording.count, help="instead of the workload's 1")
    parser.add_argument(
        "--offset-spread", type=float, help="standard deviation of the offsets, in cells"
    )
    recording.add_arguments(parser, seconds=60)


def run(options: argparse.Namespace) -> int:
    """Measures, prints every row, and at the end the tables and the targets.

    Returns:
        The exit status, 0.

    Raises:
        WrongAnswerError: A variant computes something else; it was not timed.
        SystemExit: The options contradict each other, or there is no native kernel.
    """
    usual = _USUAL if options.device == "cpu" else ON_CUDA[:1]
    options.measure = tuple(options.measure or usual)
    options.variants = tuple(options.variants or ()) or _default_variants(options.device)
    _refuse_contradictions(options)
    return showing.measure_and_show("operator", options, _rows(_plan(options)))


def _rows(jobs: Sequence[Job]) -> Iterator[Row]:
    for job in jobs:
        print(f"-- {job.workload.label}: {', '.join(job.metrics)}", flush=True)
        yield from measure(job)


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.all + options.quick + bool(options.workloads) > 1:
        raise SystemExit("choose workloads, or --all, or --quick")
    if options.all and (options.dtype or options.batch or options.offset_spread is not None):
        raise SystemExit("--all has its own dtypes, batch and spread: choose workloads instead")
    if options.device != "cpu" and (options.all or not set(options.measure) <= set(ON_CUDA)):
        raise SystemExit(f"--device {options.device} measures {' and '.join(ON_CUDA)} alone")
    if "native" in options.variants:
        try:
            resolve_backend(options.device, "native")
        except RuntimeError as error:
            raise SystemExit(
                f"{error}; without it: --variants reference composite dense"
            ) from error


def _default_variants(device: str = "cpu") -> tuple[str, ...]:
    others = (
        each.name
        for each in THIRD_PARTY.values()
        if each.is_installed and (each.on_cpu or device != "cpu")
    )
    return ("native", "composite", "dense", *others)


# -- what to do --------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> list[Job]:
    requested = _jobs(options)
    refusals = {
        (job.workload.label, name): refusal
        for job in requested
        for name in job.variants
        if (refusal := IMPLEMENTATIONS[name].refusal(job.workload, options.device))
    }
    for (label, name), refusal in refusals.items():
        print(f"-- {label}: {name} is left out, {refusal}", flush=True)
    jobs = []
    for job in requested:
        able = (name for name in job.variants if (job.workload.label, name) not in refusals)
        job = dataclasses.replace(job, variants=tuple(able))
        if not job.variants:
            names, label = " and ".join(options.variants), job.workload.label
            raise SystemExit(f"{names} cannot do {label}: {refusals[label, options.variants[0]]}")
        refusal = IMPLEMENTATIONS[job.subject].refusal(CALL, options.device)
        if "overhead" in job.metrics and refusal:
            raise SystemExit(f"--measure overhead: {job.subject} cannot do {CALL.label}: {refusal}")
        jobs.append(job)
    return jobs


def _jobs(options: argparse.Namespace) -> list[Job]:
    variants = options.variants
    job = functools.partial(
        Job,
        variants=variants,
        threads=options.threads,
        seconds=options.seconds,
        rounds=options.rounds,
        seed=options.seed,
        device=options.device,
        is_detailed=options.device != "cpu",
        checked=set(),
    )
    if options.quick:
        metrics = tuple(METRICS) if options.device == "cpu" else ON_CUDA
        return [job(_adapt(WORKLOADS["tiny"], options), metrics, seconds=0.5)]
    if options.all:
        return _everything(job, variants, options.seconds)
    names = options.workloads or ["paper-encoder"]
    return [job(_adapt(WORKLOADS[name], options), options.measure) for name in names]


def _everything(job: Callable[..., Job], variants: tuple[str, ...], seconds: float) -> list[Job]:
    """Every table of the page.

    The targets are about the paper's encoder in float32, which gets all the time. A call of many
    others takes so long that the fewest rounds take longer than their share.
    """
    encoder, detr = WORKLOADS["paper-encoder"], WORKLOADS["detr-encoder"]
    bfloat16, float16, float64 = (
        dataclasses.replace(encoder, dtype=dtype) for dtype in ("bfloat16", "float16", "float64")
    )
    with_compiled = tuple(dict.fromkeys((*variants, "composite-compiled")))
    with_reference = tuple(dict.fromkeys((variants[0], "reference")))
    # The composite would take most of the run, and only grows as we do.
    fast = _without("composite", variants)
    brief = functools.partial(job, seconds=seconds / 8)

    def long(workload: Workload, names: tuple[str, ...]) -> list[Job]:
        quick = _without("dense", names)
        return [
            brief(workload, ("latency",), variants=names, modes=MODES),
            brief(workload, ("latency",), variants=quick, modes=("backward",)),
        ]

    print("-- backward alone is left out where a call takes up to 20 s: of the reference, and of")
    print("   dense attention on detr-encoder, bev-cross and paper-encoder-large", flush=True)
    return [
        # Before the row that the others are compared with: of two rows of one variant the last
        # counts.
        brief(encoder, ("latency",), variants=with_reference, modes=MODES),
        job(encoder, ("latency",), variants=with_compiled),
        job(encoder, tuple(name for name in METRICS if name != "latency")),
        brief(bfloat16, _USUAL),
        brief(float16, ("latency", "bandwidth")),
        brief(float64, ("latency", "bandwidth")),
        job(WORKLOADS["paper-decoder"], _USUAL, seconds=seconds / 4),
        *long(detr, with_compiled),
        brief(detr, ("memory", "bandwidth")),
        brief(WORKLOADS["detr-decoder"], _USUAL),
        *long(WORKLOADS["bev-cross"], variants),
        brief(WORKLOADS["bev-cross"], ("bandwidth",)),
        *long(WORKLOADS["paper-encoder-large"], fast),
        brief(WORKLOADS["paper-encoder-large"], ("memory", "bandwidth"), variants=fast),
    ]


def _without(kind: str, variants: tuple[str, ...]) -> tuple[str, ...]:
    """The first, which ratios refer to, and the others except those of a kind."""
    first, *others = variants
    return (first, *(name for name in others if not name.startswith(kind)))


def _adapt(workload: Workload, options: argparse.Namespace) -> Workload:
    changes = {name: getattr(options, name) for name in ("dtype", "batch", "offset_spread")}
    return dataclasses.replace(
        workload, **{name: change for name, change in changes.items() if change is not None}
    )
