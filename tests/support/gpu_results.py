"""What a row of a GPU's results must say."""

from __future__ import annotations

from benchmarks.report import bars
from benchmarks.subjects.base import ALL_MODES

_COMMON = {
    "schema", "suite", "device", "capability", "multiprocessors", "memory_bytes",
    "driver, clock, power", "nvcc", "torch_cuda", "cpu", "cores", "simd", "system", "python",
    "torch", "stdeform", "commit", "command", "load_average_at_start", "time",
    "measurement", "label",
}  # fmt: skip
_TIMED = _COMMON | {
    *("subject", "workload", "variant", "mode", "seconds", "flushed", "host", "wall"),
    *("num_rounds", "ratio"),
}
_FIELDS = {
    "device time": _TIMED,
    "device time of peers": _TIMED,
    "device ceiling": _COMMON | {"per_second"},
}
_MOVED = {"gathered_bytes", "compulsory_bytes", "added_numbers", "added"}  # of our kernels
_RAN = {"backend"}  # of dense attention


def assert_gpu_schema(row: bars.Row) -> None:
    """Asserts that all is there, and that it is from a clean commit."""
    assert set(row) - _MOVED - _RAN == _FIELDS[row["measurement"]]
    assert row["schema"] == 2
    assert row["device"] != "cpu"
    assert not row["commit"].endswith("-dirty")
    assert row["command"].startswith("python -m benchmarks gpu-check")
    if row["measurement"] != "device ceiling":
        assert row["mode"] in ALL_MODES
        assert row["num_rounds"] >= 1
