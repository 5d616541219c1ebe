"""The stage `ncu` of `gpu-check`: what Nsight Compute says of the two kernels that take longest."""

from __future__ import annotations

import dataclasses
import sys

from benchmarks.gpu import gpu_plan
from benchmarks.gpu.gpu_build import find
from benchmarks.gpu.gpu_job import Job
from benchmarks.measure import kernel_times
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS

_KERNELS = 2
_CALLS = 2  # forward and backward each; the first one warms up
_DTYPES = ("float32", "bfloat16")


def run(job: Job) -> bool:
    """Counts in both dtypes on the paper's encoder; the log has all that was counted."""
    tool = find("ncu")
    if tool is None:
        job.record.note("left out: there is no ncu")
        return True
    passed = True
    for dtype in _DTYPES[: 1 if job.quick else None]:
        name = "tiny" if job.quick else "paper-encoder"
        hottest = _hottest(name, dtype, job)
        report = job.output / f"ncu-{dtype}.ncu-rep"
        # The clocks are left as they are: whoever shares the machine needs them too.
        counting = [tool, "--clock-control", "none", "--set", "full", "--force-overwrite"]
        counting += ["--kernel-name", f"regex:^({'|'.join(hottest)})$"]
        counting += ["--launch-skip", str(len(hottest)), "--launch-count", str(len(hottest))]
        program = (sys.executable, "-m", "benchmarks.measure.kernel_times")
        counting += ["--export", str(report), *program]
        status = job.call([*counting, job.device, name, dtype, str(_CALLS)])
        told = status == 0 and job.call([tool, "--import", str(report), "--page", "details"]) == 0
        outcome = f"see {job.log.name}" if told else f"it failed, see {job.log.name}"
        job.record.note(f"{dtype}: {', '.join(hottest)}: {outcome}")
        passed &= told
    return passed


def _hottest(name: str, dtype: str, job: Job) -> list[str]:
    """The functions of those kernels of ours that take longest, forward and backward together."""
    workload = dataclasses.replace(WORKLOADS[name], dtype=dtype)
    prepared = IMPLEMENTATIONS[gpu_plan.SUBJECT].prepare(workload, 0).to(job.device)
    rows = kernel_times.measure(prepared.call("forward+backward"), job.device)
    for row in rows:
        job.record.row({"label": workload.label, "mode": "forward+backward", **row})
    ours = filter(None, (kernel_times.function(row["kernel"]) for row in rows))
    return list(dict.fromkeys(ours))[:_KERNELS] or ["forward_kernel"]
