"""What `gpu-check` times: the plan, its order and its verdicts; flushed caches; uniform samples."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from benchmarks.costs.traffic import corner_bytes
from benchmarks.gpu import gpu_plan
from benchmarks.measure.device_timing import time_calls
from benchmarks.workloads import WORKLOADS, make_inputs


def _row(
    workload: str, mode: str, variant: str, seconds: float, ratio: float = 1
) -> dict[str, object]:
    return {
        "label": workload,
        "mode": mode,
        "variant": variant,
        "seconds": {"median": seconds},
        "host": {"median": seconds},
        "ratio": {"to": "native", "median": ratio},
    }


def _verdicts(rows: list[dict[str, object]]) -> str:
    return re.sub(" +", " ", gpu_plan.verdicts(rows, on_gpu=True))


def test_verdicts_tell_pass_short_and_absent() -> None:
    large = "paper-encoder-large, bfloat16"
    rows = [
        _row("paper-encoder, float32", "forward", "native", 134e-6),
        _row("paper-encoder, float32", "backward", "native", 201e-6),
        _row(large, "forward+backward", "native", 1e-3),
        {**_row(large, "forward+backward", "dense", 4.9e-3, 4.9), "backend": "flash"},
    ]
    told = _verdicts(rows)
    assert "| paper-encoder, float32 | forward | device time <= 135 us | 134.0 us | pass |" in told
    assert "| backward | device time <= 200 us | 201.0 us | FALLS SHORT |" in told
    assert (
        f"| {large} | forward+backward | >= 5x faster than dense | 4.90x dense (flash) | FALL"
        in told
    )
    assert told.count("not measured") == len(gpu_plan._BARS) - 3
    rows[0]["seconds"], rows[-1]["ratio"] = {"median": 135.04e-6}, {"median": 4.9999}
    told = _verdicts(rows)
    assert "| device time <= 135 us | 135.04 us | FALLS SHORT |" in told
    assert "| 4.9999x dense (flash) | FALLS SHORT |" in told
    assert gpu_plan.verdicts(rows, on_gpu=False).count("not measured") == len(gpu_plan._BARS)


def test_the_best_anchor_in_three_dimensions_is_what_counts() -> None:
    assert gpu_plan.ANCHORS == ("composite", "composite-compiled", "ops3d")
    half = "paper-encoder, bfloat16"
    bar = f"| {half} | forward | >= 4x faster than anchor |"
    others = [
        _row(half, "forward", "native", 1.0),
        _row(half, "forward", "dense", 1.0, 1.1),
        _row("detr-encoder, bfloat16", "forward", "composite", 1.0, 1.2),
        _row(f"{half}, batch 4", "forward", "composite", 1.0, 1.3),
        _row(half, "backward", "composite", 1.0, 3.5),
    ]
    assert f"{bar} - | not measured: no anchor |" in _verdicts(others)
    composite = _row(half, "forward", "composite", 9.0, 9)
    assert f"{bar} 9.00x composite | pass |" in _verdicts([*others, composite])
    peer = _row(f"{half}, locations in bfloat16", "forward", "ops3d", 3.9, 3.9)
    told = _verdicts([*others, composite, peer])
    assert f"{bar} 3.90x ops3d (slower: composite) | FALLS SHORT |" in told
    assert "| backward | >= 4x faster than anchor | 3.50x composite | FALLS SHORT |" in told


def test_our_time_on_the_locations_of_a_peer_is_no_promise() -> None:
    row = _row("paper-encoder, bfloat16, locations in bfloat16", "forward", "native", 1e-6)
    assert _verdicts([row]).count("not measured") == len(gpu_plan._BARS)


def test_both_dtypes_are_held_against_dense_attention() -> None:
    dense = [bar for bar in gpu_plan._BARS if bar.others == ("dense",)]
    assert [(bar.workload, bar.mode, bar.limit) for bar in dense] == [
        ("paper-encoder-large", "forward+backward", 5)
    ] * 2
    assert [bar.dtype for bar in dense] == ["float32", "bfloat16"]


def test_every_case_is_planned_once_and_bars_come_first() -> None:
    usual, full = gpu_plan.cases(False, False), gpu_plan.cases(False, True)
    assert full[: len(usual)] == usual
    assert len({case.key for case in full}) == len(full)
    first = {case.workload.label for case in usual[:5]}
    assert first == {bar.label for bar in gpu_plan._BARS}


def test_the_full_matrix_has_every_dtype_batch_and_spread() -> None:
    full = gpu_plan.cases(False, True)
    timed = {case.workload: case for case in full if "composite-compiled" not in case.variants}
    for name in ("paper-encoder", "paper-decoder", "detr-encoder", "paper-encoder-large"):
        for dtype, batch, spread in itertools.product(
            ("float32", "bfloat16", "float16"), (1, 4), (2.0, 0.5, 8.0, None)
        ):
            assert gpu_plan._adapt(name, dtype=dtype, batch=batch, offset_spread=spread) in timed
    compiled = {
        (case.workload.label, *case.modes) for case in full if case.label.endswith("-compiled)")
    }
    assert compiled == set(
        itertools.product(
            (
                f"{name}, {dtype}"
                for name in ("paper-encoder", "paper-decoder", "detr-encoder")
                for dtype in ("float32", "bfloat16")
            ),
            ("forward", "forward+backward"),
        )
    )
    # What may take minutes each is last, so that it takes the time of nothing else.
    assert [case.workload.label for case in full[-4:]] == [
        f"paper-encoder-large, float32, batch 4{spread}"
        for spread in ("", ", spread 0.5", ", spread 8", ", uniform")
    ]


def test_the_compiled_composite_is_timed_forward_and_after_everything_usual() -> None:
    *others, last = gpu_plan.cases(False, False)
    assert (last.workload.label, last.modes) == ("paper-encoder, float32", ("forward",))
    assert last.variants == ("native", "composite-compiled")
    assert last.label == "paper-encoder, float32 (composite-compiled)"
    assert not any("composite-compiled" in case.variants for case in others)


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
