"""`python -m benchmarks gpu-check`: everything that has to be seen on a GPU, without a network.

Four commands of at most nine minutes each, so that each fits where a GPU is lent for minutes:

    alive   does it build, is it right, how fast is it
    tune    which constants and choices of the kernels are fastest
    tests   all tests of the kernels, and the sanitizers
    full    whole models; other libraries; every dtype, batch and spread

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
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import (
    benchmark,
    build,
    ncu,
    page,
    run_tests,
    stage,
    third_party,
    tune,
    variants,
)
from benchmarks.gpu.stage import RESULTS, LostDeviceError, Stage, first_line
from benchmarks.measure import processes
from benchmarks.measure.processes import ROOT
from benchmarks.measure.recording import load_rows

# What each does, and the seconds that it takes at most.
STAGES: dict[str, tuple[Callable[[Stage], bool], float]] = {
    "build": (build.build, 130),
    "environment": (build.describe, 20),
    "every-kernel": (run_tests.every_kernel_once, 45),
    "benchmark": (benchmark.usual, 120),
    "kernels": (benchmark.kernels, 30),
    "ceilings": (benchmark.ceilings, 45),
    "cuda-tests": (run_tests.on_gpu, 150),
    "variants": (variants.build, 110),
    "sweep": (tune.sweep, 180),
    "ncu": (ncu.run, 100),
    "result-tests": (run_tests.results, 100),
    "memcheck": (run_tests.sanitize, 110),
    "racecheck": (run_tests.sanitize, 110),
    "initcheck": (run_tests.sanitize, 70),
    "models": (benchmark.models, 90),
    "third-party": (third_party.run, 90),
    "matrix": (benchmark.matrix, 210),  # the last, because it takes all the time that is left
}
# A build comes first, because every command may find a fresh machine, and the environment after it,
# because it describes what was built.
_FIRST = ("build", "environment")
COMMANDS = {
    "alive": (*_FIRST, "every-kernel", "benchmark", "kernels", "ceilings", "cuda-tests"),
    "tune": (*_FIRST, "variants", "sweep", "ncu"),
    "tests": (*_FIRST, "result-tests", "memcheck", "racecheck", "initcheck"),
    "full": (*_FIRST, "models", "third-party", "matrix"),
}
_PRINTED = 9_000  # letters of the page: of longer output a machine may show the end alone
_LOST = 75  # exit status of a stage that has to go on in another process
_LEAST_SECONDS = 12.0  # with which it does


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument(
        "what",
        nargs="+",
        choices=(*COMMANDS, *STAGES),
        metavar="COMMAND or STAGE",
        help=f"{', '.join(COMMANDS)}; {', '.join(STAGES)}",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--quick", action="store_true", help="few tests, tiny problems")
    parser.add_argument("--patience", type=float, default=1, help="times the usual limits")
    parser.add_argument("--prebuilt", type=Path, help="a folder that `prebuilt` has made")


def run(options: argparse.Namespace) -> int:
    """Runs the requested stages; the exit status is 1 if one of them failed."""
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    has_passed, report = True, ""
    flags = ["--device", "cpu"] if options.device == "cpu" else []
    flags += ["--quick"] * options.quick
    deadline = time.monotonic()
    with processes.stopping_cleanly():
        for name in planned(options.what):
            deadline += options.patience * STAGES[name][1]
            print(f"== {name}", flush=True)
            this = Stage(
                name=name,
                output=str(output),
                device=options.device,
                deadline=deadline,
                quick=options.quick,
                prebuilt=str(options.prebuilt.absolute()) if options.prebuilt else "",
                words=(*options.what, *flags),
            )
            has_passed &= _run_in_process(this)
            print(*page.state(name, this.read()), sep="\n", flush=True)
            report = _page(output)
            (output / "gpu-check.md").write_text(report)
    print("\n" + report[:_PRINTED])
    return int(not has_passed)


def planned(words: list[str]) -> list[str]:
    """The stages of commands, or those that are named, each once."""
    return list(dict.fromkeys(name for word in words for name in COMMANDS.get(word, (word,))))


def _page(output: Path) -> str:
    """The page; if it fails the reason: the next stages are worth more."""
    results = output / RESULTS
    try:
        rows = load_rows([results] if results.exists() else [])
        return page.page(stage.read(output), rows)
    except Exception:
        return traceback.format_exc()


def _run_in_process(this: Stage) -> bool:
    """Runs a stage in a process of its own; whether it passed.

    A stage that crashes, or that has lost the GPU, goes on in another process with what it has not
    tried yet.
    """
    start = time.monotonic()
    this.write(began=True)
    this.log.unlink(missing_ok=True)
    tried, goes_on = 0, True
    while goes_on:
        command = [sys.executable, "-m", __name__]
        seconds = this.deadline - time.monotonic()
        status = processes.run(command, seconds, this.log, this.environment)
        tried, before = len(this.read()["tried"]), tried
        has_crashed = status not in (None, 0, 1)
        goes_on = has_crashed and tried > before and this.left > _LEAST_SECONDS
    taken = round(time.monotonic() - start, 1)
    if status is None:
        this.note(f"stopped after {taken:.0f} s")
    elif has_crashed:
        this.note(f"its process ended with status {status}, see gpu-check.log")
    this.write(end={"passed": status == 0, "seconds": taken})
    # One file, because a lent machine may give back few; until then it is a file of its own.
    with Path(this.output, "gpu-check.log").open("ab") as file:
        file.write(f"== {this.name}\n".encode() + this.log.read_bytes())
    this.log.unlink()
    return status == 0


def run_here(this: Stage) -> int:
    """Runs a stage; its exit status."""
    try:
        return int(not STAGES[this.name][0](this))
    except LostDeviceError as error:
        this.note(f"the GPU is lost to this process: {error}")
        return _LOST
    except Exception as error:  # the stages after it are worth having all the same
        traceback.print_exc()
        this.note(first_line(error))
        return 1


if __name__ == "__main__":
    sys.exit(run_here(Stage.of_environment()))
