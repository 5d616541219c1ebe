"""`python -m benchmarks gpu-check`: everything that has to be seen on a GPU, without a network.

Four commands of at most nine minutes each, so that each fits where a GPU is lent for minutes:

    alive   does it build, is it right, how fast is it
    tune    which constants and choices of the kernels are fastest
    tests   all tests of the kernels, and the sanitizers
    full    every dtype, batch and spread, and other libraries

Each consists of stages, which can be named instead. A stage is a process with a limit; the next one
gets what it leaves of its time. Below --output every row of results is written to `results.jsonl`
and every test and note to `gpu-check.jsonl` as it is made, a page to `gpu-check.md` and what
programs print to `gpu-check.log` after every stage. `--device cpu` is a dry run without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import benchmark, build, ncu, page, record, run_tests, third_party, tune
from benchmarks.gpu.record import Found, Record
from benchmarks.gpu.stage import RESULTS, LostDeviceError, Stage, first_line
from benchmarks.measure import processes
from benchmarks.measure.processes import ROOT
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import Row

STAGES: dict[str, Callable[[Stage], bool]] = {
    "build": build.build,
    "environment": build.describe,
    "every-kernel": run_tests.every_kernel_once,
    "benchmark": benchmark.usual,
    "kernels": benchmark.kernels,
    "ceilings": benchmark.ceilings,
    "cuda-tests": run_tests.on_gpu,
    "variants": tune.build_variants,
    "sweep": tune.time_variants,
    "ncu": ncu.run,
    "result-tests": run_tests.results,
    "memcheck": run_tests.sanitize,
    "racecheck": run_tests.sanitize,
    "initcheck": run_tests.sanitize,
    "matrix": benchmark.matrix,
    "third-party": third_party.run,
}
# Seconds of each stage of each command, at most. A build comes first, because every command may
# find a fresh machine, and the environment after it, because it describes what was built.
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
    "full": {"build": 130, "environment": 20, "matrix": 300, "third-party": 90},
}
_PRINTED = 11_000  # letters: of longer output a machine may show the end alone
_NOTES = 5  # of a stage that are printed
_LOST = 75  # exit status of a stage that has to go on in another process
_LEAST_SECONDS = 15.0  # with which it does


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument(
        "what",
        nargs="*",
        type=_known,
        metavar="COMMAND or STAGE",
        help=f"{', '.join(COMMANDS)}; {', '.join(STAGES)}; by default all commands",
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
    if word not in (*COMMANDS, *STAGES):
        known = ", ".join((*COMMANDS, *STAGES))
        raise argparse.ArgumentTypeError(f"{word} is none of {known}")
    return word


def run(options: argparse.Namespace) -> int:
    """Runs the requested stages.

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
            failed |= not _in_its_own_process(name, end, options)
            stages = record.read(options.output / record.NAME)
            (options.output / "gpu-check.md").write_text(_rendered(page.page, stages, options))
            state = "\n".join(page.state(name, stages[name], most=_NOTES))
            print(state, flush=True)
            left -= len(state)
        print("\n" + _rendered(page.summary, stages, options)[:left])
    return int(failed)


def _rendered(
    render: Callable[[dict[str, Found], Sequence[Row]], str],
    stages: dict[str, Found],
    options: argparse.Namespace,
) -> str:
    """A page; if it fails the reason: the next stages are worth more."""
    results = options.output / RESULTS
    try:
        return render(stages, load_rows([results] if results.exists() else []))
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


def _in_its_own_process(name: str, deadline: float, options: argparse.Namespace) -> bool:
    """Runs a stage; whether it passed.

    A stage that crashes, or that has lost the GPU, goes on in another process with what it has not
    tried yet.
    """
    start = time.monotonic()
    own = Record(options.output, name)
    own.write(began=True)
    log = options.output / f"{name}.log"
    log.unlink(missing_ok=True)
    while True:
        tried = len(own.read()["tried"])
        command = [sys.executable, "-m", "benchmarks", *options.argv]
        command += ["--stage", name, "--until", str(deadline)]
        status = processes.run(command, deadline - time.monotonic(), log)
        has_crashed = status not in (None, 0, 1)
        goes_on = has_crashed and len(own.read()["tried"]) > tried
        if not goes_on or deadline - time.monotonic() < _LEAST_SECONDS:
            break
    seconds = time.monotonic() - start
    if status is None:
        own.note(f"stopped after {seconds:.0f} s")
    elif has_crashed:
        own.note(f"its process ended with status {status}, see gpu-check.log")
    own.write(end={"passed": status == 0, "seconds": round(seconds, 1)})
    # One file, because a lent machine may give back few; until then it is a file of its own.
    with (options.output / "gpu-check.log").open("ab") as file:
        file.write(f"== {name}\n".encode() + log.read_bytes())
    log.unlink()
    return status == 0


def _in_this_process(options: argparse.Namespace) -> int:
    """Runs one stage; its exit status."""
    flags = ["--device", "cpu"] if options.device == "cpu" else []
    flags += ["--quick"] * options.quick
    stage = Stage(
        name=options.stage,
        device=options.device,
        output=options.output,
        deadline=options.until,
        quick=options.quick,
        rounds=options.rounds,
        argv=("gpu-check", *options.what, *flags),
        prebuilt=options.prebuilt,
    )
    try:
        return int(not STAGES[options.stage](stage))
    except LostDeviceError as error:
        stage.record.note(f"the GPU is lost to this process: {error}")
        return _LOST
    except Exception as error:  # the stages after it are worth having all the same
        traceback.print_exc()
        stage.record.note(first_line(error))
        return 1
