"""What `python -m benchmarks operator` sets out to measure, and whom it leaves out."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.__main__ import main
from benchmarks.commands import operator
from benchmarks.measure.rows import ALL_MODES, MODES
from benchmarks.metrics import METRICS, Job
from benchmarks.subjects import base
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import DTYPES, WORKLOADS

SECONDS = 24.0


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What `--all` would measure."""
    planned: list[Job] = []
    monkeypatch.setattr(operator, "resolve_backend", lambda *asked: "native")
    monkeypatch.setattr(operator, "measure", lambda job: planned.append(job) or [])
    monkeypatch.setattr(base, "compiler", lambda: "c++")
    chosen = ["--all", "--variants", "native", "composite", "dense", "--seconds", str(SECONDS)]
    assert main(["operator", *chosen]) == 0
    return planned


def _timed(jobs: list[Job]) -> set[tuple[str, str, str]]:
    return {
        (job.workload.label, name, mode)
        for job in jobs
        if "latency" in job.metrics
        for name in job.variants
        for mode in job.modes
    }


def test_all_covers_every_workload_dtype_backend_and_baseline(jobs: list[Job]) -> None:
    timed = _timed(jobs)
    for dtype in DTYPES:
        for name in ("native", "composite", "dense"):
            assert {(f"paper-encoder, {dtype}", name, mode) for mode in ALL_MODES} <= timed
    for workload in WORKLOADS.keys() - {"tiny", "four-elements"}:
        label = f"{workload}, float32"
        assert {(label, "native", mode) for mode in ALL_MODES} <= timed
        assert {(label, "dense", mode) for mode in MODES} <= timed
        has_composite = {(label, "composite", mode) for mode in ALL_MODES} <= timed
        assert has_composite == (workload != "paper-encoder-large")
    assert {("paper-encoder, float32", "reference", mode) for mode in MODES} <= timed
    for workload in ("paper-encoder", "detr-encoder"):
        label = f"{workload}, float32"
        assert {(label, "composite-compiled", mode) for mode in ALL_MODES} <= timed
    measured = {name for job in jobs for name in job.metrics}
    assert measured == set(METRICS)


def test_all_gives_its_time_to_the_promises(jobs: list[Job]) -> None:
    for job in jobs:
        is_promised = job.workload.label == "paper-encoder, float32"
        if "growth" in job.metrics:
            assert job.seconds == SECONDS
        assert job.seconds <= (SECONDS if is_promised else SECONDS / 4)
    # Of two rows of one variant the last counts: the one that the baselines are compared with.
    last = [
        job
        for job in jobs
        if "latency" in job.metrics and job.workload.label == "paper-encoder, float32"
    ][-1]
    assert {"native", "composite", "dense"} <= set(last.variants)
    assert (last.seconds, last.modes) == (SECONDS, ALL_MODES)


def test_all_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str], jobs: list[Job]) -> None:
    said = capsys.readouterr().out
    missing = {
        (workload, name)
        for workload, name, _ in _timed(jobs)
        if (workload, name, "backward") not in _timed(jobs)
    }
    assert missing == {
        ("paper-encoder, float32", "reference"),
        *((f"{name}, float32", "dense") for name in
          ("detr-encoder", "bev-cross", "paper-encoder-large")),
    }  # fmt: skip
    assert "backward alone is left out" in said
    for workload, name in missing:
        assert name in said
        assert workload.removesuffix(", float32") in said or name == "reference"


@pytest.mark.parametrize(
    ("workload", "dtype", "reason"),
    [
        ("detr-encoder", "float32", ""),
        ("detr-encoder", "bfloat16", "it has no operator for bfloat16"),
        ("paper-encoder", "float32", "it has no operator for 3 axes"),
    ],
)
def test_peers_do_what_they_can(workload: str, dtype: str, reason: str) -> None:
    asked = dataclasses.replace(WORKLOADS[workload], dtype=dtype)
    assert IMPLEMENTATIONS["transformers"].refusal(asked) == reason
    assert IMPLEMENTATIONS["native"].refusal(asked) == ""


def test_compiled_variants_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "compiler", lambda: None)
    refusal = IMPLEMENTATIONS["composite-compiled"].refusal(WORKLOADS["tiny"])
    assert refusal == "it needs a C++ compiler"
    assert IMPLEMENTATIONS["composite"].refusal(WORKLOADS["tiny"]) == ""
