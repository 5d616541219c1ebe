"""`python -m benchmarks operator`: speed, memory and bandwidth of the operator."""

from __future__ import annotations

import argparse
import dataclasses
import functools

from stdeform.functional import resolve_backend

from . import recording, report
from .measurements import CALL, MEASUREMENTS, Job, measure
from .peers import PEERS, is_installed
from .variants import VARIANTS
from .workloads import DTYPES, WORKLOADS, Workload

_USUAL = ("latency", "memory", "bandwidth")


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
        choices=[variant.name for variant in VARIANTS.values() if variant.on_cpu],
        default=_default_variants(),
        help="what is timed in turn; ratios are to the first; by default native composite dense,"
        " and other libraries' operators that are installed; each only where it can",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="instead of the workload's float32")
    parser.add_argument("--batch", type=recording.count, help="instead of the workload's 1")
    parser.add_argument(
        "--offset-spread", type=float, help="standard deviation of the offsets, in cells"
    )
    recording.add_arguments(parser, seconds=60)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Measures, prints every row, and at the end the tables and the bars.

    Returns:
        The exit status, 0.

    Raises:
        WrongAnswerError: A variant computes something else; it was not timed.
        SystemExit: The options contradict each other, or there is no native kernel.
    """
    _refuse_contradictions(options)
    recorder = recording.Recorder("operator", options, arguments)
    for job in _plan(options):
        print(f"-- {job.workload.label}: {', '.join(job.measurements)}", flush=True)
        for row in recorder.add(measure(job)):
            print(report.line(row), flush=True)
    print("\n" + report.tables(recorder.rows))
    return 0


def _workload_name(text: str) -> str:
    if text not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(WORKLOADS)}, got {text}")
    return text


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.all + options.quick + bool(options.workloads) > 1:
        raise SystemExit("choose workloads, or --all, or --quick")
    if options.all and (options.dtype or options.batch or options.offset_spread is not None):
        raise SystemExit("--all has its own dtypes, batch and spread: choose workloads instead")
    if "native" in options.variants:
        try:
            resolve_backend("cpu", "native")
        except RuntimeError as error:
            raise SystemExit(
                f"{error}; without it: --variants reference composite dense"
            ) from error


def _default_variants() -> tuple[str, ...]:
    others = (name for name, peer in PEERS.items() if peer.on_cpu and is_installed(name))
    return ("native", "composite", "dense", *others)


# -- what to do --------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> list[Job]:
    jobs = [dataclasses.replace(job, variants=_able(job)) for job in _jobs(options)]
    for job in jobs:
        if not job.variants:
            raise SystemExit(
                f"{' and '.join(options.variants)} cannot do {job.workload.label}: another number"
                " of axes"
            )
        if "overhead" in job.measurements and not VARIANTS[job.subject].can_do(CALL):
            raise SystemExit(f"--measure overhead: {job.subject} cannot do {CALL.label}")
    return jobs


def _able(job: Job) -> tuple[str, ...]:
    return tuple(name for name in job.variants if VARIANTS[name].can_do(job.workload))


def _jobs(options: argparse.Namespace) -> list[Job]:
    variants = tuple(options.variants)
    job = functools.partial(
        Job,
        variants=variants,
        threads=options.threads,
        seconds=options.seconds,
        rounds=options.rounds,
        seed=options.seed,
        checked=set(),
    )
    everything = tuple(MEASUREMENTS)
    if options.quick:
        return [job(_adapt(WORKLOADS["tiny"], options), everything, seconds=0.5)]
    if options.all:
        encoder = WORKLOADS["paper-encoder"]
        bfloat16 = dataclasses.replace(encoder, dtype="bfloat16")
        # The composite of the large encoder would take most of the run, and only grows as we do.
        fast = tuple(name for name in variants if not name.startswith("composite")) or variants
        return [
            job(encoder, everything),
            job(bfloat16, _USUAL, seconds=options.seconds / 2),
            job(WORKLOADS["paper-decoder"], _USUAL, seconds=options.seconds / 4),
            job(WORKLOADS["detr-encoder"], _USUAL),
            job(WORKLOADS["paper-encoder-large"], _USUAL, variants=fast),
        ]
    names = options.workloads or ["paper-encoder"]
    return [job(_adapt(WORKLOADS[name], options), tuple(options.measure)) for name in names]


def _adapt(workload: Workload, options: argparse.Namespace) -> Workload:
    wished = {name: getattr(options, name) for name in ("dtype", "batch", "offset_spread")}
    return dataclasses.replace(
        workload, **{name: wish for name, wish in wished.items() if wish is not None}
    )
