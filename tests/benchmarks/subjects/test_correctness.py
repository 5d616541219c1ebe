"""Implementations do the same work, and a wrong answer is never timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.measure.recording import load_rows
from benchmarks.subjects.base import Case, Implementation
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload
from stdeform import _native

TINY = WORKLOADS["tiny"]
OURS = "reference" if _native.missing("cpu") else "native"


def _cases(workload: Workload, *names: str) -> dict[str, Case]:
    return {name: IMPLEMENTATIONS[name].prepare(workload, 0) for name in names}


def test_every_implementation_does_the_same_work() -> None:
    """Gradients of everything differentiable, from one dense gradient of the result."""
    for name in (OURS, "composite"):
        prepared = IMPLEMENTATIONS[name].prepare(TINY, 0)
        out, *grads = prepared.forward_backward()
        assert [grad.shape for grad in grads] == [tensor.shape for tensor in prepared.inputs]
        assert out.shape == prepared.grad_out.shape
        assert not prepared.forward().requires_grad


def test_dense_attention_sees_the_same_tokens() -> None:
    decoder = dataclasses.replace(TINY, num_object_queries=7, batch=2)
    query, key, value = IMPLEMENTATIONS["dense"].prepare(decoder, 0).inputs
    assert list(query.shape) == [2, 2, 7, 16]
    assert list(key.shape) == list(value.shape) == [2, 2, 120, 16]
    assert all(tensor.is_contiguous() for tensor in (query, key, value))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_right_answers_pass(dtype: str) -> None:
    workload = dataclasses.replace(TINY, dtype=dtype)
    names = (OURS, "reference", "composite", "dense")
    check_correctness(workload, _cases(workload, *names))


def _shift_points(case: Case) -> Case:
    """Half a cell to the right: align_corners mixed up."""

    def attend(value, points, offsets, logits):
        return case.function(value, points, offsets + 0.5, logits)

    return case._replace(function=attend)


def _drop_last_query(case: Case) -> Case:
    def attend(*inputs):
        out = case.function(*inputs)
        return torch.cat([out[:, :-1], torch.zeros_like(out[:, -1:])], 1)

    return case._replace(function=attend)


def _lose_value_gradient_of_one_cell(case: Case) -> Case:
    def attend(value, *others):
        kept = torch.cat([value[:, :57], value[:, 57:58].detach(), value[:, 58:]], 1)
        return case.function(kept, *others)

    return case._replace(function=attend)


def _wrong_only_without_gradients(case: Case) -> Case:
    def attend(*inputs):
        out = case.function(*inputs)
        return out if torch.is_grad_enabled() else 1.01 * out

    return case._replace(function=attend)


def _forget_the_scale(case: Case) -> Case:
    def attend(query, key, value):
        return case.function(query * query.shape[-1] ** 0.5, key, value)

    return case._replace(function=attend)


BREAKAGES = [
    (OURS, _shift_points),
    (OURS, _drop_last_query),
    (OURS, _lose_value_gradient_of_one_cell),
    (OURS, _wrong_only_without_gradients),
    ("composite", _shift_points),
    ("dense", _forget_the_scale),
]


@pytest.fixture(params=BREAKAGES, ids=lambda case: f"{case[0]}{case[1].__name__}")
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an implementation that now computes something else."""
    name, breakage = request.param
    right = IMPLEMENTATIONS[name]

    def prepare(workload: Workload, seed: int) -> Case:
        return breakage(right.prepare(workload, seed))

    monkeypatch.setitem(IMPLEMENTATIONS, name, Implementation(name, prepare, right.is_operator))
    return name


def test_wrong_answer_stops_the_command_before_any_time_is_taken(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.jsonl"
    chosen = ["--variants", OURS, "composite", "dense", "--measure", "latency"]
    status = main(["operator", "tiny", *chosen, "--rounds", "1", "--output", str(output)])
    assert status == 1
    assert load_rows([output]) == []
    assert f"nothing was timed: {broken}: " in capsys.readouterr().err
