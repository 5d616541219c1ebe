"""The stages of `gpu-check` that take times: ours, others', single kernels', the GPU's own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from benchmarks.costs import atomics, gpu_roofline, traffic
from benchmarks.gpu import gpu_plan
from benchmarks.gpu.gpu_job import Job, LostDeviceError, first_line
from benchmarks.gpu.third_party_check import Finding, check_third_party
from benchmarks.measure import kernel_times
from benchmarks.measure.comparison import compare, describe
from benchmarks.report.bars import Row
from benchmarks.subjects.correctness import find_errors
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.sdpa import backend_of
from benchmarks.subjects.third_party import THIRD_PARTY
from benchmarks.workloads import WORKLOADS, Inputs, Workload

_CEILING_ROUNDS = 5
_LEAST = 10  # seconds that a peer is begun with
_PROFILED = (("paper-encoder", ("float32", "bfloat16")), ("detr-encoder", ("float32",)))
_PROFILED_MODES = ("forward", "backward")


def usual(job: Job) -> bool:
    """What the promises are about, and a little more."""
    return _time_cases(job, gpu_plan.cases(job.quick, full=False))


def matrix(job: Job) -> bool:
    """Every dtype, batch and spread."""
    return _time_cases(job, gpu_plan.cases(job.quick, full=True))


def _time_cases(job: Job, cases: Sequence[gpu_plan.Case]) -> bool:
    """Times cases in order; what does not fit in the time is named."""
    tried = job.record.read()["tried"]
    longest, late = 0.0, []
    for case in cases:
        if case.key in tried:
            continue
        if max(longest, case.seconds) > job.left:
            late.append(case.label)
            continue
        began = time.monotonic()
        job.record.trying(case.key)
        try:
            _time_case(case, job)
        except LostDeviceError:
            raise
        except Exception as error:  # no memory, say: the other cases are worth having
            job.record.note(f"{case.label}: {first_line(error)}")
            job.check_device()
        job.record.done(case.key)
        longest = max(longest, time.monotonic() - began)
    if late:
        job.record.note(f"no time for {len(late)}: {'; '.join(late)}")
    stage = job.record.read()
    right = not any("wrong" in row for row in stage["rows"])
    timed = {row["key"] for row in stage["rows"] if row["variant"] == gpu_plan.SUBJECT}
    missed = [key for key in stage["tried"] if key not in timed]
    return right and bool(timed) and not missed


def _time_case(case: gpu_plan.Case, job: Job) -> None:
    """A row of every variant and mode. Of those that answer wrongly only ours are timed, marked."""
    variants = {
        name: IMPLEMENTATIONS[name].prepare(case.workload, 0).to(job.device)
        for name in case.variants
    }
    errors = find_errors(case.workload, variants, gradients=case.modes != ("forward",))
    for name, error in errors.items():
        job.record.note(f"{case.label}: {name}: {first_line(error)}")
        job.check_device()
        if name != gpu_plan.SUBJECT:
            del variants[name]
    rounds = 3 if job.quick else job.rounds
    for row in compare(case.workload, variants, case.modes, job.device, rounds=rounds):
        print(f"   {describe(row)}", flush=True)
        row["key"] = case.key
        if row["variant"] == gpu_plan.SUBJECT:
            if gpu_plan.SUBJECT in errors:
                row["wrong"] = first_line(errors[gpu_plan.SUBJECT])
            ours = variants[gpu_plan.SUBJECT]
            inputs = Inputs(*(tensor.detach() for tensor in (*ours.inputs, ours.grad_out)))
            row |= _work(case.workload, row["mode"], inputs)
        if row["variant"] == gpu_plan.DENSE:
            run = "forward" if row["mode"] == "forward" else "forward+backward"
            row["backend"] = backend_of(variants[gpu_plan.DENSE].call(run))
        job.record.row(row)


def _work(workload: Workload, mode: str, inputs: Inputs) -> Row:
    """What our kernels move, to be held against what the GPU gives."""
    if mode == "forward":
        return {
            "gathered_bytes": traffic.corner_bytes(workload, inputs),
            "compulsory_bytes": traffic.compulsory_bytes(inputs),
        }
    if mode == "backward":
        bins = atomics.sort_into_bins(workload, inputs)
        added = atomics.count(bins, workload.head_dim)
        by_bins = atomics.takes_bins(workload)
        return {
            "added_numbers": added.by_bins if by_bins else added.direct,
            "added": "bin by bin" if by_bins else "one by one",
        }
    return {}


def kernels(job: Job) -> bool:
    """The time of every kernel that our forward and backward launch."""
    chosen = [("tiny", ("float32",))] if job.quick else _PROFILED
    for name, dtypes in chosen:
        for dtype in dtypes:
            workload = dataclasses.replace(WORKLOADS[name], dtype=dtype)
            prepared = IMPLEMENTATIONS[gpu_plan.SUBJECT].prepare(workload, 0).to(job.device)
            for mode in _PROFILED_MODES:
                for row in kernel_times.measure(prepared.call(mode), job.device):
                    job.record.row({"label": workload.label, "mode": mode, **row})
    return True


def ceilings(job: Job) -> bool:
    """What the GPU could give at most, for the shares on the page."""
    if job.device == "cpu":
        job.record.note("left out: it needs a GPU")
        return True
    for name, rate in gpu_roofline.measure(_CEILING_ROUNDS):
        print(f"   {name}: {rate['median'] / 1e9:.0f} G/s", flush=True)
        job.record.row({"ceiling": name, "rate": rate})
    return True


def peers(job: Job) -> bool:
    """Other libraries' operators beside ours; one that cannot be timed is named with its reason."""
    rounds = 3 if job.quick else job.rounds
    for name in THIRD_PARTY:
        found = Finding(rows=[], reason="no time was left")
        if job.left > _LEAST:
            found = check_third_party(
                name, job.device, rounds=rounds, quick=job.quick, seconds=job.left
            )
        job.record.row({"peer": name, **found})
        print(f"   {name}: {found['reason'] or 'timed'}", flush=True)
    return True
