"""The stage `ncu` of `gpu-check`: what Nsight Compute counts in the two kernels that take longest.

`python -m benchmarks.gpu.ncu DTYPE` is the program that it looks at.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu import plan
from benchmarks.gpu.stage import Stage
from benchmarks.measure import kernel_times
from benchmarks.measure.compiled import cuda_tool
from benchmarks.subjects.base import Case
from benchmarks.subjects.registry import IMPLEMENTATIONS

_KERNELS = 2


def run(stage: Stage) -> bool:
    """Counts in both dtypes on the paper's encoder; the log has all that was counted."""
    tool = cuda_tool("ncu")
    if tool is None:
        stage.note("left out: there is no ncu")
        return True
    passed = True
    for dtype in ("float32", "bfloat16"):
        # The functions of those kernels of ours that take longest, forward and backward together.
        rows = kernel_times.measure(_prepare(stage, dtype).forward_backward, stage.device)
        ours = filter(None, (kernel_times.function(row["kernel"]) for row in rows))
        slowest = list(dict.fromkeys(ours))[:_KERNELS] or ["forward_kernel"]
        stage.note(f"{dtype}: {', '.join(slowest)}: see gpu-check.log")
        report = str(Path(stage.output, f"ncu-{dtype}.ncu-rep"))
        count = str(len(slowest))
        # The clocks are left as they are: other users of the machine need them too.
        counting = [tool, "--clock-control", "none", "--set", "full", "--force-overwrite"]
        counting += ["--kernel-name", f"regex:^({'|'.join(slowest)})$"]
        counting += ["--launch-skip", count, "--launch-count", count]
        counting += ["--export", report, sys.executable, "-m", __name__, dtype]
        details = [tool, "--import", report, "--page", "details"]
        passed &= stage.call(counting) and stage.call(details)
    return passed


def _prepare(stage: Stage, dtype: str) -> Case:
    workload = plan.adapt("tiny" if stage.quick else "paper-encoder", dtype=dtype)
    return IMPLEMENTATIONS["native"].prepare(workload, 0).to(stage.device)


if __name__ == "__main__":
    prepared = _prepare(Stage.of_environment(), sys.argv[1])
    for _ in range(2):  # the first one warms up, and is not counted
        prepared.forward_backward()
