"""The stage `ncu` of `gpu-check`: what Nsight Compute counts in the two kernels that take longest.

`python -m benchmarks.gpu.ncu DEVICE WORKLOAD DTYPE` is the program that it looks at.
"""

from __future__ import annotations

import sys

from benchmarks.gpu import plan
from benchmarks.gpu.stage import Stage
from benchmarks.measure import kernel_times
from benchmarks.measure.compiled import cuda_tool
from benchmarks.subjects.base import Case
from benchmarks.subjects.registry import IMPLEMENTATIONS

_KERNELS = 2
_CALLS = 2  # forward and backward each; the first one warms up
_DTYPES = ("float32", "bfloat16")


def run(stage: Stage) -> bool:
    """Counts in both dtypes on the paper's encoder; the log has all that was counted."""
    tool = cuda_tool("ncu")
    if tool is None:
        stage.record.note("left out: there is no ncu")
        return True
    passed = True
    for dtype in _DTYPES[: 1 if stage.quick else None]:
        name = "tiny" if stage.quick else "paper-encoder"
        slowest = _slowest(name, dtype, stage)
        report = stage.output / f"ncu-{dtype}.ncu-rep"
        # The clocks are left as they are: other users of the machine need them too.
        counting = [tool, "--clock-control", "none", "--set", "full", "--force-overwrite"]
        counting += ["--kernel-name", f"regex:^({'|'.join(slowest)})$"]
        counting += ["--launch-skip", str(len(slowest)), "--launch-count", str(len(slowest))]
        counting += ["--export", str(report), sys.executable, "-m", __name__]
        status = stage.call([*counting, stage.device, name, dtype])
        details = [tool, "--import", str(report), "--page", "details"]
        is_read = status == 0 and stage.call(details) == 0
        outcome = "see gpu-check.log" if is_read else "it failed, see gpu-check.log"
        stage.record.note(f"{dtype}: {', '.join(slowest)}: {outcome}")
        passed &= is_read
    return passed


def _slowest(name: str, dtype: str, stage: Stage) -> list[str]:
    """The functions of those kernels of ours that take longest, forward and backward together."""
    rows = kernel_times.measure(_prepare(name, dtype, stage.device).forward_backward, stage.device)
    label = plan.adapt(name, dtype=dtype).label
    about = {"measurement": "kernels", "label": label, "mode": "forward+backward"}
    stage.add({**about, **row} for row in rows)
    ours = filter(None, (kernel_times.function(row["kernel"]) for row in rows))
    return list(dict.fromkeys(ours))[:_KERNELS] or ["forward_kernel"]


def _prepare(name: str, dtype: str, device: str) -> Case:
    return IMPLEMENTATIONS[plan.SUBJECT].prepare(plan.adapt(name, dtype=dtype), 0).to(device)


if __name__ == "__main__":
    device, name, dtype = sys.argv[1:]
    prepared = _prepare(name, dtype, device)
    for _ in range(_CALLS):
        prepared.forward_backward()
