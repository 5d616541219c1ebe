"""The backward alone: the same gradients at every call; implementations that cannot are named."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import metrics
from benchmarks.__main__ import main
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import ALL_MODES
from benchmarks.subjects.base import BackwardOnceError, Case
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import WORKLOADS, Workload
from stdeform import _native

ROOT = Path(__file__).parents[2]
TINY = WORKLOADS["tiny"]
OURS = "reference" if _native.missing("cpu") else "native"
REFUSAL = "written over, which requires retain_graph=False.\nA page of advice"


@pytest.mark.parametrize("name", [OURS, "reference", "composite", "dense", "dense-naive"])
def test_backward_alone_gives_the_gradients_again_and_again(name: str) -> None:
    prepared = IMPLEMENTATIONS[name].prepare(TINY, 0)
    _, *expected = prepared.forward_backward()
    backward = prepared.call("backward")
    for _ in range(2):
        torch.testing.assert_close(backward(), tuple(expected), rtol=0, atol=0)


def test_backward_alone_runs_no_forward() -> None:
    prepared = IMPLEMENTATIONS["reference"].prepare(TINY, 0)
    calls = []

    def attend(*inputs: Tensor) -> Tensor:
        calls.append(inputs)
        return prepared.function(*inputs)

    backward = prepared._replace(function=attend).call("backward")
    before = len(calls)
    backward()
    assert len(calls) == before


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("name", ["native", "native-deterministic"])
def test_a_deterministic_backward_ends_with_the_setting_as_it_was(name: str) -> None:
    seen = []

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out: Tensor) -> Tensor:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return out.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            seen.append(torch.are_deterministic_algorithms_enabled())
            raise RuntimeError("no memory")

    prepared = IMPLEMENTATIONS[name].prepare(TINY, 0).to("cpu")
    broken = prepared._replace(function=lambda *inputs: Broken.apply(prepared.function(*inputs)))
    with pytest.raises(RuntimeError, match="no memory"):
        broken.forward_backward()
    assert seen == [False, name == "native-deterministic"]
    assert not torch.are_deterministic_algorithms_enabled()


class _Once(torch.autograd.Function):
    """Refuses to keep its graph, in the way and in the words of a compiled backward."""

    @staticmethod
    def forward(ctx, out: Tensor) -> Tensor:
        return out.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        if torch._C._autograd._get_current_graph_task_keep_graph():
            raise RuntimeError(REFUSAL)
        return grad


def _run(variants: list[str], folder: Path) -> set[tuple[str, str]]:
    """Who was timed in which mode."""
    output = folder / "rows.jsonl"
    chosen = ["--variants", *variants, "--measure", "latency", "--rounds", "1"]
    assert main(["operator", "tiny", *chosen, "--output", str(output)]) == 0
    rows = load_rows([output])
    return {(row["variant"], row["mode"]) for row in rows}


def test_a_backward_that_runs_once_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    composite = IMPLEMENTATIONS["composite"]

    def prepare(workload: Workload, seed: int) -> Case:
        prepared = composite.prepare(workload, seed)
        return prepared._replace(function=lambda *inputs: _Once.apply(prepared.function(*inputs)))

    monkeypatch.setitem(
        IMPLEMENTATIONS, "composite", dataclasses.replace(composite, prepare=prepare)
    )
    everything = {(name, mode) for name in (OURS, "composite") for mode in ALL_MODES}
    reason = "is left out: written over, which requires retain_graph=False.\n"
    assert _run([OURS, "composite"], tmp_path) == everything - {("composite", "backward")}
    assert f"backward of composite {reason}" in capsys.readouterr().out
    # Ratios are to the first.
    assert {mode for _, mode in _run(["composite", OURS], tmp_path)} == set(ALL_MODES) - {
        "backward"
    }
    said = capsys.readouterr().out
    assert f"backward of composite and of all that is compared with it {reason}" in said


def test_a_backward_that_fails_for_another_reason_is_not_left_out() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out: Tensor) -> Tensor:
            return out.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    prepared = IMPLEMENTATIONS["reference"].prepare(TINY, 0)
    broken = prepared._replace(function=lambda *inputs: Broken.apply(prepared.function(*inputs)))
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        broken.call("backward")
    assert not isinstance(caught.value, BackwardOnceError)


def test_threads_are_compared_with_the_best_and_processes_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_THREADS", (1, 3))
    monkeypatch.setattr(metrics, "_PROCESSES", (1, 2))
    job = metrics.Job(TINY, ("threads",), (OURS,), threads=1, rounds=1, modes=("forward",))
    *threads, one, two = metrics.measure(job)
    assert [row["threads"] for row in threads] == [1, 3]
    best = min(row["seconds"]["median"] for row in threads)
    for row in threads:
        assert row["ratio"]["median"] == pytest.approx(row["seconds"]["median"] / best)
    at_once = f"{OURS}, processes at once: "
    assert [row["variant"] for row in (one, two)] == [f"{at_once}1", f"{at_once}2"]
    of_one, of_two = (row["seconds"]["median"] for row in (one, two))
    assert (one["ratio"]["median"], one["threads"]) == (1, 1)
    assert two["ratio"]["median"] == pytest.approx(of_two / 2 / of_one)
    assert all(row["busy"]["median"] > 0 for row in (*threads, one, two))


@pytest.mark.slow
def test_a_compiled_backward_is_timed_or_named(tmp_path: Path) -> None:
    """Whether it keeps its graph is PyTorch's business; in a process of its own, as it is used."""
    output = tmp_path / "rows.jsonl"
    chosen = ["--variants", OURS, "composite-compiled", "--measure", "latency", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "operator", "tiny", *chosen, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = load_rows([output])
    timed = {(row["variant"], row["mode"]) for row in rows}
    assert {("composite-compiled", "forward"), ("composite-compiled", "forward+backward")} < timed
    is_named = "backward of composite-compiled is left out: " in done.stdout
    assert is_named != (("composite-compiled", "backward") in timed)
