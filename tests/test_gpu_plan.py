"""What `gpu-check` times: the plan, its order and its verdicts; flushed caches; uniform samples."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_plan
from benchmarks.answers import WrongAnswerError
from benchmarks.device_timing import time_calls
from benchmarks.traffic import corner_bytes
from benchmarks.workloads import WORKLOADS, make_inputs


def _row(workload: str, mode: str, variant: str, seconds: float) -> dict[str, object]:
    return {
        "workload": workload,
        "mode": mode,
        "variant": variant,
        "device": {"median": seconds},
        "host": {"median": seconds},
    }


def test_verdicts_tell_pass_short_and_absent() -> None:
    large = "paper-encoder-large, bfloat16"
    rows = [
        _row("paper-encoder, float32", "forward", "native", 134e-6),
        _row("paper-encoder, float32", "backward", "native", 201e-6),
        _row(large, "forward+backward", "native", 1e-3),
        _row(large, "forward+backward", "dense", 4.9e-3),
    ]
    told = gpu_plan.verdict_lines(rows, on_gpu=True)
    assert "| paper-encoder, float32 | forward | device time <= 135 us | 134.0 us | pass |" in told
    assert any("| backward |" in line and "201.0 us | FALLS SHORT" in line for line in told)
    assert any("4.90x | FALLS SHORT" in line for line in told)
    assert sum("not measured" in line for line in told) == 3
    assert sum("not measured" in line for line in gpu_plan.verdict_lines(rows, on_gpu=False)) == 6


def test_every_case_is_planned_once_and_bars_come_first() -> None:
    usual, full = gpu_plan.cases(False, False), gpu_plan.cases(False, True)
    assert full[: len(usual)] == usual
    assert len(set(full)) == len(full)
    first = {case.workload.label for case in usual[:4]}
    assert first == {bar.workload for bar in gpu_plan._BARS}


def test_what_has_no_time_is_named_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_compare", lambda case, _: [{"workload": case.workload.label}])
    # Every look at the clock is 40 s later than the one before.
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(gpu_check.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(gpu_check, "_table", lambda _: "")
    options = argparse.Namespace(quick=False, full=False, seconds=300, output=tmp_path)
    result = gpu_check._benchmark(options, [])
    done = len(result["rows"])
    cases = gpu_plan.cases(False, False)
    assert 0 < done < len(cases)
    assert all(case.workload.label in result["left out"] for case in cases[done:])
    assert gpu_check._read(options)["benchmark"]["rows"] == result["rows"]


def test_a_case_that_fails_is_told_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(case: gpu_plan.Case, _: object) -> list[dict[str, object]]:
        if case.workload.dtype == "float32":
            raise WrongAnswerError("off")
        return [_row(case.workload.label, "forward", "native", 1.0)]

    monkeypatch.setattr(gpu_check, "_compare", compare)
    monkeypatch.setattr(gpu_check, "_table", lambda _: "")
    options = argparse.Namespace(quick=True, full=False, seconds=60, output=tmp_path)
    result = gpu_check._benchmark(options, [])
    assert not result["passed"]
    assert result["error"] == "tiny, float32: WrongAnswerError: off; "
    assert [row["workload"] for row in result["rows"]] == ["tiny, bfloat16"]


def test_the_cache_is_flushed_outside_the_time() -> None:
    seen: list[int] = []
    times = time_calls({"one": lambda: seen.append(1)}, "cpu", rounds=3)["one"]
    # 64 MiB are not written in 1 ms; an empty call is done in far less.
    assert 0 < times.flushed.median < 1e-3


def test_uniform_samples_cover_the_volume() -> None:
    for name in ("paper-encoder", "detr-encoder"):
        workload = gpu_plan._adapt(name, offset_spread=None)
        inputs = make_inputs(workload, 0)
        sizes = torch.tensor([shape[::-1] for shape in workload.spatial_shapes])[:, None]
        places = inputs.reference_points[:, :, None, :, None] + inputs.sampling_offsets / sizes
        assert places.mean() == pytest.approx(0.5, abs=0.01)
        assert places.std() == pytest.approx(12**-0.5, abs=0.01)
        assert corner_bytes(workload, inputs) > 0
        assert workload.label == f"{name}, float32, uniform"


def test_bev_workload_has_its_stated_sizes() -> None:
    workload = WORKLOADS["bev-cross"]
    assert (workload.num_cells, workload.num_queries) == (30_825, 10_000)
