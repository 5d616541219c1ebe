"""A plugin of pytest: the outcome of every test as a row of `gpu-check`, as soon as it is known.

`-p benchmarks.gpu.pytest_rows`; STDEFORM_GPU_RECORD and STDEFORM_GPU_STAGE say where rows go.
"""

from __future__ import annotations

import pytest

from benchmarks.gpu.record import Record, of_environment

_LONGEST = 2000  # letters of an error: its end


class _Rows:
    def __init__(self, record: Record) -> None:
        self._record = record

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        row = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        if report.failed:
            row["error"] = report.longreprtext[-_LONGEST:]
        self._record.write(row=row)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the rows, in the process that hears of all tests."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Rows(of_environment()))
