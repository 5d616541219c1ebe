"""What `gpu-check` times, and in which order."""

from __future__ import annotations

import itertools

from benchmarks.gpu import plan
from benchmarks.report.targets import GPU_TARGETS


def test_every_case_is_planned_once_and_targets_come_first() -> None:
    usual, matrix = plan.usual(quick=False), plan.matrix(quick=False)
    assert matrix[: len(usual)] == usual
    assert len({case.label for case in matrix}) == len(matrix)
    first = {case.workload.label for case in usual[:5]}
    assert first == {target.label for target in GPU_TARGETS}
    assert usual[-1].label == "paper-encoder, float32 (composite-compiled, forward)"


def test_the_matrix_has_every_dtype_batch_and_spread() -> None:
    matrix = plan.matrix(quick=False)
    timed = {case.workload for case in matrix if "composite-compiled" not in case.variants}
    for name in ("paper-encoder", "paper-decoder", "detr-encoder", "paper-encoder-large"):
        for dtype, batch, spread in itertools.product(
            ("float32", "bfloat16", "float16"), (1, 4), (2.0, 0.5, 8.0, None)
        ):
            assert plan.adapt(name, dtype=dtype, batch=batch, offset_spread=spread) in timed
    compiled = [case for case in matrix if "composite-compiled" in case.variants]
    assert len(compiled) == 3 * 2 * 2  # workloads, dtypes, modes
    # What may take minutes each is last, so that it takes the time of nothing else.
    assert [case.workload.label for case in matrix[-4:]] == [
        f"paper-encoder-large, float32, batch 4{spread}"
        for spread in ("", ", spread 0.5", ", spread 8", ", uniform")
    ]
