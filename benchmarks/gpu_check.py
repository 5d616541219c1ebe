"""`python -m benchmarks gpu-check`: everything that has to be seen on a GPU, without a network.

Stages, each in a process of its own, most valuable first: `environment`, `build` (in place, for the
GPU that is there), `tests` (of the CUDA kernels), `benchmark`, `ceilings` (what the GPU gives to
gathers, additions and copies), `sanitizer` (compute-sanitizer on some) and `peers` (operators of
other libraries, where they are at hand). Writes `gpu-check.json` and `gpu-check.md`; a stage that
is run alone replaces its part of them. With `--device cpu` it walks through the stages without a
GPU, the kernels emulated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import additions, device_ceiling, environment, gpu_page, gpu_plan, traffic
from .answers import check_answers
from .attention_backend import backend_of
from .comparison import compare, describe
from .peer_check import check_peer, first_line
from .peers import PEERS
from .variants import VARIANTS
from .workloads import Inputs, Workload

_ROOT = Path(__file__).parents[1]
_TESTS = ("test_forward.py", "test_gradients.py", "test_properties.py", "test_cuda.py")
# Every template of the kernels at its smallest; a sanitizer makes each run many times slower.
_SANITIZED = "(test_dtypes or test_head_dims or test_bins_agree)"
_SANITIZERS = ("memcheck", "racecheck", "initcheck")
# Seconds; with those of the benchmark, less than ten minutes. It and the peers are told theirs.
_LIMITS = {
    "environment": 20,
    "build": 145,
    "tests": 145,
    "ceilings": 40,
    "sanitizer": 135,
}
_CEILING_ROUNDS = 5
_LEAST = 10  # seconds that a peer is begun with
_GRACE = 20  # seconds that a stage which minds its own time may take beyond it

Report = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--stages", nargs="+", choices=_STAGES, default=list(_STAGES), help="by default all"
    )
    parser.add_argument(
        "--output", type=Path, default=_ROOT / "build" / "gpu-check", help="a folder"
    )
    parser.add_argument("--quick", action="store_true", help="few tests, a tiny problem")
    parser.add_argument("--rounds", type=int, default=15, help="of the benchmark; default 15")
    parser.add_argument("--seconds", type=float, default=90, help="for the benchmark; default 90")
    parser.add_argument("--full", action="store_true", help="every case; give --seconds")
    parser.add_argument(
        "--peers",
        type=Path,
        default=_ROOT.parent / "peers",
        help="a folder with checkouts of other libraries, built in there; default ../peers",
    )
    parser.add_argument(
        "--peer-seconds", type=float, default=220, help="for all peers, building included"
    )


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Runs the stages that were asked for.

    Returns:
        The exit status: 1 if one of them failed.
    """
    if len(options.stages) == 1:
        return _run_stage(options.stages[0], options, arguments)
    failed = False
    limits = {
        **_LIMITS,
        "benchmark": options.seconds + _GRACE,
        "peers": options.peer_seconds + _GRACE,
    }
    for name in options.stages:
        command = [sys.executable, "-m", "benchmarks", *arguments, "--stages", name]
        try:
            # A process of its own: the build exchanges the module under those that have loaded it.
            failed |= subprocess.run(command, cwd=_ROOT, timeout=limits[name]).returncode != 0
        except subprocess.TimeoutExpired:
            late = {"passed": False, "error": "stopped", "seconds": limits[name]}
            stages = _read(options)
            _write(options, stages | {name: {**stages.get(name, {}), **late}})
            failed = True
    print("\n" + gpu_page.page(_read(options)))
    return int(failed)


def _run_stage(name: str, options: argparse.Namespace, arguments: list[str]) -> int:
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    try:
        result = _STAGES[name](options, arguments)
    except Exception as error:  # the stages after it are worth having all the same
        result = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        print(f"   {result['error']}", flush=True)
    result["seconds"] = round(time.perf_counter() - start, 1)
    _write(options, _read(options) | {name: result})
    return int(not result.get("passed", True))


def _read(options: argparse.Namespace) -> Report:
    """What the stages run so far have found, by their names."""
    path = options.output / "gpu-check.json"
    stages: Report = json.loads(path.read_text()) if path.is_file() else {}
    return stages


def _write(options: argparse.Namespace, stages: Report) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu-check.json").write_text(json.dumps(stages, indent=1) + "\n")
    (options.output / "gpu-check.md").write_text(gpu_page.page(stages))


# -- stages ------------------------------------------------------------------------------------


def _environment(options: argparse.Namespace, arguments: list[str]) -> Report:
    stage = ["--stages", "environment"]  # as `run` appends it
    facts = environment.describe(arguments[:-2] if arguments[-2:] == stage else arguments)
    # Where only the files travel to the GPU, the commit is told.
    facts["commit"] = facts["commit"] or os.environ.get("STDEFORM_COMMIT")
    facts["nvcc"] = _first_match(r"release [\d.]+, V[\d.]+", ["nvcc", "--version"])
    facts["torch_cuda"] = torch.version.cuda
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit"]
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver, clock, power": _first_match(r".+", [*query, "--format=csv,noheader"]),
        }
    for name, fact in facts.items():
        print(f"   {name}: {fact}")
    return facts


def _build(options: argparse.Namespace, arguments: list[str]) -> Report:
    """Builds in place for the GPU that is there, with what the machine has."""
    arch = "90"
    if options.device == "cuda":
        arch = "".join(map(str, torch.cuda.get_device_capability(0)))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    _call(command, STDEFORM_CUDA="1", STDEFORM_CUDA_ARCHS=arch)
    _call([sys.executable, "-m", "stdeform"])
    return {"passed": True, "architecture": arch}


def _tests(options: argparse.Namespace, arguments: list[str]) -> Report:
    """The CUDA kernels against the oracles; on the CPU the same with the emulator."""
    backend = "cuda" if options.device == "cuda" else "emulated"
    files = [f"tests/{name}" for name in _TESTS]
    chosen = "test_dtypes" if options.quick else f"{backend} or test_cuda"
    return _pytest([*files, "-k", f"({chosen}) and ({backend} or test_cuda)"])


def _sanitizer(options: argparse.Namespace, arguments: list[str]) -> Report:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if options.device == "cpu":
        return {"passed": True, "left out": "it needs a GPU"}
    results: Report = {"passed": True}
    for check in _SANITIZERS:
        command = [tool, "--tool", check, "--kernel-regex", "kns=stdeform", "--error-exitcode=9"]
        outcome = _pytest(
            [*(f"tests/{name}" for name in _TESTS), "-k", f"cuda and {_SANITIZED}"],
            command,
        )
        results[check] = outcome
        results["passed"] &= outcome["passed"]
    return results


def _benchmark(options: argparse.Namespace, arguments: list[str]) -> Report:
    """Forward, backward and both, against others; what does not fit in the time is named.

    Rows are written after every workload, so that a run that is stopped has those before it.
    """
    start = time.perf_counter()
    result: Report = {"passed": True, "rows": [], "left out": "", "error": "", "seconds": 0.0}
    _write(options, _read(options) | {"benchmark": result})  # nothing of an older run stays
    longest = 0.0
    for case in gpu_plan.cases(options.quick, options.full):
        began = time.perf_counter()
        if began - start + max(longest, case.seconds) > options.seconds:
            result["left out"] += f"no time for {case.label}; "
            print(f"   no time for {case.label}", flush=True)
            continue
        try:
            result["rows"] += _compare(case, options)
        except Exception as error:  # a wrong answer, no memory: the other cases are worth having
            result["passed"] = False
            result["error"] += f"{case.label}: {first_line(error)}; "
            print(f"   {case.label}: {error}", flush=True)
        now = time.perf_counter()
        longest = max(longest, now - began)
        result["seconds"] = round(now - start, 1)
        _write(options, _read(options) | {"benchmark": result})
    return result


def _ceilings(options: argparse.Namespace, arguments: list[str]) -> Report:
    """What the GPU could give at most, for the shares on the page."""
    if options.device == "cpu":
        return {"passed": True, "left out": "it needs a GPU"}
    rates = device_ceiling.measure(_CEILING_ROUNDS)
    for name, rate in rates.items():
        print(f"   {name}: {rate['median'] / 1e9:.0f} G/s", flush=True)
    return {"passed": True, "rates": rates}


def _peers(options: argparse.Namespace, arguments: list[str]) -> Report:
    """Other libraries' operators beside ours; one that cannot be timed is named with its reason."""
    start = time.perf_counter()
    result: Report = {"passed": True, "peers": {}, "seconds": 0.0}
    for name in PEERS:
        left = options.peer_seconds - (time.perf_counter() - start)
        if left < _LEAST:
            result["peers"][name] = {"rows": [], "reason": "no time was left"}
        else:
            result["peers"][name] = check_peer(
                name,
                options.peers,
                options.device,
                rounds=3 if options.quick else options.rounds,
                quick=options.quick,
                seconds=left,
            )
        print(f"   {name}: {result['peers'][name]['reason'] or 'timed'}", flush=True)
        result["seconds"] = round(time.perf_counter() - start, 1)
        _write(options, _read(options) | {"peers": result})
    return result


_STAGES: dict[str, Callable[[argparse.Namespace, list[str]], Report]] = {
    "environment": _environment,
    "build": _build,
    "tests": _tests,
    "benchmark": _benchmark,
    "ceilings": _ceilings,
    "sanitizer": _sanitizer,
    "peers": _peers,
}


def _compare(case: gpu_plan.Case, options: argparse.Namespace) -> list[Report]:
    """One row per variant and mode; answers are checked before anything is timed."""
    variants = {
        name: VARIANTS[name].prepare(case.workload, 0).to(options.device) for name in case.variants
    }
    check_answers(case.workload, variants, gradients=case.modes != ("forward",))
    rounds = 3 if options.quick else options.rounds
    rows = []
    for row in compare(case.workload, variants, case.modes, options.device, rounds=rounds):
        print(f"   {describe(row)}", flush=True)
        if row["variant"] == gpu_plan.SUBJECT:
            ours = variants[gpu_plan.SUBJECT]
            inputs = Inputs(*(tensor.detach() for tensor in (*ours.inputs, ours.grad_out)))
            row |= _work(case.workload, row["mode"], inputs)
        if row["variant"] == gpu_plan.DENSE:
            run = "forward" if row["mode"] == "forward" else "forward+backward"
            row["backend"] = backend_of(variants[gpu_plan.DENSE].call(run))
        rows.append(row)
    return rows


def _work(workload: Workload, mode: str, inputs: Inputs) -> Report:
    """What our kernels move, to be held against what the GPU gives."""
    if mode == "forward":
        return {
            "gathered_bytes": traffic.corner_bytes(workload, inputs),
            "compulsory_bytes": traffic.compulsory_bytes(inputs),
        }
    if mode == "backward":
        bins = additions.sort_into_bins(workload, inputs)
        added = additions.count(bins, workload.head_dim)
        by_bins = additions.takes_bins(workload)
        return {
            "added_numbers": added.by_bins if by_bins else added.direct,
            "added": "bin by bin" if by_bins else "one by one",
        }
    return {}


# -- other programs ----------------------------------------------------------------------------


def _call(command: list[str], **environment: str) -> None:
    print("   " + " ".join(command), flush=True)
    subprocess.run(command, cwd=_ROOT, env=os.environ | environment, check=True)


def _pytest(arguments: list[str], prefix: list[str] | None = None) -> Report:
    """Runs pytest, perhaps under another program; a run in which nothing ran has failed."""
    command = [*(prefix or []), sys.executable, "-m", "pytest", "-q", *arguments]
    print("   " + " ".join(command), flush=True)
    done = subprocess.run(
        command, cwd=_ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    lines = done.stdout.splitlines()
    summary = next((line for line in reversed(lines) if re.search(r"\d+ passed", line)), "")
    errors = re.findall(r"ERROR SUMMARY: (\d+)", done.stdout)
    passed = done.returncode == 0 and bool(summary)
    print("\n".join(lines[-5:] if passed else lines[-60:]), flush=True)
    return {
        "passed": passed,
        "summary": summary.strip("= "),
        "exit": done.returncode,
        **({"errors": sum(map(int, errors))} if errors else {}),
        **({} if passed else {"tail": lines[-60:]}),
    }


def _first_match(pattern: str, command: list[str]) -> str | None:
    try:
        told = subprocess.run(command, text=True, capture_output=True, check=False).stdout
    except OSError:
        return None
    match = re.search(pattern, told)
    return match[0] if match else None
