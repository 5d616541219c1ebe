"""What `gpu-check` times, and in which order."""

from __future__ import annotations

import itertools

from benchmarks.gpu import plan
from benchmarks.report.targets import GPU_TARGETS


def test_every_case_is_planned_once_and_targets_come_first() -> None:
    usual, full = plan.cases(False, False), plan.cases(False, True)
    assert full[: len(usual)] == usual
    assert len({case.key for case in full}) == len(full)
    first = {case.workload.label for case in usual[:5]}
    assert first == {target.label for target in GPU_TARGETS}


def test_the_full_matrix_has_every_dtype_batch_and_spread() -> None:
    full = plan.cases(False, True)
    timed = {case.workload: case for case in full if "composite-compiled" not in case.variants}
    for name in ("paper-encoder", "paper-decoder", "detr-encoder", "paper-encoder-large"):
        for dtype, batch, spread in itertools.product(
            ("float32", "bfloat16", "float16"), (1, 4), (2.0, 0.5, 8.0, None)
        ):
            assert plan.adapt(name, dtype=dtype, batch=batch, offset_spread=spread) in timed
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
    *others, last = plan.cases(False, False)
    assert (last.workload.label, last.modes) == ("paper-encoder, float32", ("forward",))
    assert last.variants == ("native", "composite-compiled")
    assert last.label == "paper-encoder, float32 (composite-compiled)"
    assert not any("composite-compiled" in case.variants for case in others)
