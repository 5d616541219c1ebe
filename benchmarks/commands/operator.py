"""`python -m benchmarks operator`: speed, memory and bandwidth of the operator."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable

from benchmarks.measure import recording
from benchmarks.measure.measurements import CALL, MEASUREMENTS, Job, measure
from benchmarks.report import report
from benchmarks.subjects.base import MODES
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY
from benchmarks.workloads import DTYPES, WORKLOADS, Workload
from stdeform.functional import resolve_backend

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
        choices=[variant.name for variant in IMPLEMENTATIONS.values() if variant.on_cpu],
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
    others = (each.name for each in THIRD_PARTY.values() if each.on_cpu and each.is_installed)
    return ("native", "composite", "dense", *others)


# -- what to do --------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> list[Job]:
    wished = _jobs(options)
    refusals = {
        (job.workload.label, name): IMPLEMENTATIONS[name].refusal(job.workload)
        for job in wished
        for name in job.variants
    }
    for (label, name), refusal in refusals.items():
        if refusal:
            print(f"-- {label}: {name} is left out, {refusal}", flush=True)
    jobs = []
    for job in wished:
        able = tuple(name for name in job.variants if not refusals[job.workload.label, name])
        jobs.append(dataclasses.replace(job, variants=able))
    for job in jobs:
        if not job.variants:
            names, label = " and ".join(options.variants), job.workload.label
            raise SystemExit(f"{names} cannot do {label}: {refusals[label, options.variants[0]]}")
        refusal = IMPLEMENTATIONS[job.subject].refusal(CALL)
        if "overhead" in job.measurements and refusal:
            raise SystemExit(f"--measure overhead: {job.subject} cannot do {CALL.label}: {refusal}")
    return jobs


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
    if options.quick:
        return [job(_adapt(WORKLOADS["tiny"], options), tuple(MEASUREMENTS), seconds=0.5)]
    if options.all:
        return _everything(job, variants, options.seconds)
    names = options.workloads or ["paper-encoder"]
    return [job(_adapt(WORKLOADS[name], options), tuple(options.measure)) for name in names]


def _everything(job: Callable[..., Job], variants: tuple[str, ...], seconds: float) -> list[Job]:
    """Every table of the page.

    The promises are about the paper's encoder in float32, which gets all the time. Of the others
    many take so long a call that the fewest rounds are more than what they get.
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
        job(encoder, tuple(name for name in MEASUREMENTS if name != "latency")),
        brief(bfloat16, _USUAL),
        brief(float16, ("latency", "bandwidth")),
        brief(float64, ("latency", "bandwidth")),
        job(WORKLOADS["paper-decoder"], _USUAL, seconds=seconds / 4),
        *long(detr, with_compiled),
        brief(detr, ("memory", "bandwidth")),
        *long(WORKLOADS["bev-cross"], variants),
        brief(WORKLOADS["bev-cross"], ("bandwidth",)),
        *long(WORKLOADS["paper-encoder-large"], fast),
        brief(WORKLOADS["paper-encoder-large"], ("memory", "bandwidth"), variants=fast),
    ]


def _without(kind: str, variants: tuple[str, ...]) -> tuple[str, ...]:
    """The first, to which ratios are, and the others but for those of a kind."""
    first, *others = variants
    return (first, *(name for name in others if not name.startswith(kind)))


def _adapt(workload: Workload, options: argparse.Namespace) -> Workload:
    wished = {name: getattr(options, name) for name in ("dtype", "batch", "offset_spread")}
    return dataclasses.replace(
        workload, **{name: wish for name, wish in wished.items() if wish is not None}
    )
