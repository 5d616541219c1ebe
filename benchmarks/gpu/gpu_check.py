"""`python -m benchmarks gpu-check`: everything that has to be seen on a GPU, without a network.

Four commands of at most nine minutes each, so that each can be had where a GPU is lent for minutes:

    alive   does it build, is it right, how fast is it
    tune    which constants and choices of the kernels are fastest
    tests   all tests of the kernels, and the sanitizers
    full    every dtype, batch and spread, and other libraries

Each consists of stages, which can be named instead. A stage is a process with a limit; what it
leaves of its time goes to the next one. Every figure, test and note is written to
`gpu-check.jsonl` below --output as it is made, a page to `gpu-check.md` after every stage, and what
programs say to a log for each stage. With `--device cpu` all of it is walked through without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import gpu_benchmark, gpu_build, gpu_ncu, gpu_record, gpu_tests, tune
from benchmarks.gpu.gpu_job import Job, LostDeviceError, first_line
from benchmarks.gpu.gpu_record import Record
from benchmarks.measure import processes
from benchmarks.measure.processes import ROOT
from benchmarks.report import gpu_page

_STAGES: dict[str, Callable[[Job], bool]] = {
    "build": gpu_build.build,
    "environment": gpu_build.describe,
    "every-kernel": gpu_tests.every_kernel_once,
    "benchmark": gpu_benchmark.usual,
    "kernels": gpu_benchmark.kernels,
    "ceilings": gpu_benchmark.ceilings,
    "cuda-tests": gpu_tests.on_gpu,
    "variants": tune.build_variants,
    "sweep": tune.time_variants,
    "ncu": gpu_ncu.run,
    "result-tests": gpu_tests.results,
    "memcheck": gpu_tests.sanitize,
    "racecheck": gpu_tests.sanitize,
    "initcheck": gpu_tests.sanitize,
    "matrix": gpu_benchmark.matrix,
    "peers": gpu_benchmark.peers,
}
# Seconds of each stage of each command, at most. A build comes first, because every command may
# find a fresh machine, and the environment after it, because it tells of what was built.
COMMANDS = {
    "alive": {
        "build": 130,
        "environment": 20,
        "every-kernel": 45,
        "benchmark": 120,
        "kernels": 30,
        "ceilings": 45,
        "cuda-tests": 150,
    },
    "tune": {"build": 130, "environment": 20, "variants": 110, "sweep": 180, "ncu": 100},
    "tests": {
        "build": 130,
        "environment": 20,
        "result-tests": 100,
        "memcheck": 110,
        "racecheck": 110,
        "initcheck": 70,
    },
    "full": {"build": 130, "environment": 20, "matrix": 300, "peers": 90},
}
MOST = 540.0  # seconds of a command
_PRINTED = 11_000  # letters: of longer output a machine may show the end alone
_NOTES = 5  # of a stage that are printed
_LOST = 75  # exit status of a stage that wants another process
_WORTH = 15.0  # seconds that are enough to go on in one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument(
        "what",
        nargs="*",
        type=_known,
        metavar="COMMAND or STAGE",
        help=f"{', '.join(COMMANDS)}; {', '.join(_STAGES)}; by default all commands",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "gpu-check", help="a folder"
    )
    parser.add_argument("--quick", action="store_true", help="few tests, tiny problems")
    parser.add_argument("--rounds", type=int, default=15, help="of timing; default 15")
    parser.add_argument(
        "--patience", type=float, default=1, help="times the usual limits, for a slow machine"
    )
    parser.add_argument(
        "--prebuilt", type=Path, help="a folder made by `prebuilt`, to take instead of building"
    )
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # runs it, in this process
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)


def _known(word: str) -> str:
    if word not in (*COMMANDS, *_STAGES):
        known = ", ".join((*COMMANDS, *_STAGES))
        raise argparse.ArgumentTypeError(f"{word} is none of {known}")
    return word


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Runs the stages that were asked for.

    Returns:
        The exit status: 1 if one of them failed.
    """
    options.output = options.output.absolute()
    if options.stage:
        return _in_this_process(options)
    failed = False
    end = time.monotonic()
    left = _PRINTED
    with processes.stopping_cleanly():
        for name, seconds in planned(options.what, options.patience).items():
            end += seconds
            print(f"== {name}", flush=True)
            failed |= not _in_its_own_process(name, end, options, arguments)
            stages = gpu_record.read(options.output / gpu_record.NAME)
            page = _rendered(gpu_page.page, stages)
            (options.output / "gpu-check.md").write_text(page)
            told = "\n".join(gpu_page.state(name, stages[name], most=_NOTES))
            print(told, flush=True)
            left -= len(told)
        print("\n" + _rendered(gpu_page.summary, stages)[:left])
    return int(failed)


def _rendered(
    render: Callable[[dict[str, gpu_record.Stage]], str], stages: dict[str, gpu_record.Stage]
) -> str:
    """A page; where it cannot be made the reason: the record and the next stages are worth more."""
    try:
        return render(stages)
    except Exception:
        return traceback.format_exc()


def planned(what: list[str], patience: float) -> dict[str, float]:
    """The stages of commands, or those that are named, each once, with their limits."""
    limits: dict[str, float] = {}
    every = {name: limit for stages in COMMANDS.values() for name, limit in stages.items()}
    for word in what or COMMANDS:
        stages = COMMANDS.get(word) or {word: every[word]}
        limits |= {name: limit for name, limit in stages.items() if name not in limits}
    return {name: patience * limit for name, limit in limits.items()}


def _in_its_own_process(
    name: str, deadline: float, options: argparse.Namespace, arguments: list[str]
) -> bool:
    """Runs a stage; whether it passed.

    A stage that crashes, or that has lost the GPU, goes on in another process with what it has not
    tried yet.
    """
    start = time.monotonic()
    record = Record(options.output, name)
    record.begin(datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
    log = options.output / f"{name}.log"
    log.unlink(missing_ok=True)
    while True:
        tried = len(record.read()["tried"])
        command = [sys.executable, "-m", "benchmarks", *arguments]
        command += ["--stage", name, "--until", str(deadline)]
        status = processes.run(command, deadline - time.monotonic(), log)
        has_crashed = status not in (None, 0, 1)
        goes_on = has_crashed and len(record.read()["tried"]) > tried
        if not goes_on or deadline - time.monotonic() < _WORTH:
            break
    seconds = time.monotonic() - start
    if status is None:
        record.note(f"stopped after {seconds:.0f} s")
    elif has_crashed:
        record.note(f"its process ended with status {status}, see {log.name}")
    record.end(passed=status == 0, seconds=seconds)
    if not log.stat().st_size:
        log.unlink()
    return status == 0


def _in_this_process(options: argparse.Namespace) -> int:
    """Runs one stage; its exit status."""
    flags = ["--device", "cpu"] if options.device == "cpu" else []
    flags += ["--quick"] * options.quick
    job = Job(
        device=options.device,
        quick=options.quick,
        deadline=options.until,
        rounds=options.rounds,
        output=options.output,
        record=Record(options.output, options.stage),
        words=("gpu-check", *options.what, *flags),
        prebuilt=options.prebuilt,
    )
    try:
        return int(not _STAGES[options.stage](job))
    except LostDeviceError as error:
        job.record.note(f"the GPU is lost to this process: {error}")
        return _LOST
    except Exception as error:  # the stages after it are worth having all the same
        traceback.print_exc()
        job.record.note(first_line(error))
        return 1
