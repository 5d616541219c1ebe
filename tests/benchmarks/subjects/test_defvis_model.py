"""`python -m benchmarks defvis`: its parts do what they say, and wrong layers are not timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the model's backbone comes with the examples")

from benchmarks.__main__ import main
from benchmarks.commands import defvis
from benchmarks.measure import environment, memory
from benchmarks.measure.recording import load_rows
from benchmarks.report import tables
from benchmarks.subjects.base import WrongAnswerError
from benchmarks.subjects.defvis_model import prepare_parts
from defvis.models import device
from defvis.presets import preset
from stdeform import functional

PARTS = {
    ("network", "forward"),
    ("video to results", "forward"),
    ("training step", "forward+backward"),
}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.jsonl"
    words = ["defvis", "--quick", "--rounds", "3", "--threads", "1", "--output", str(output)]
    assert main(words) == 0
    rows = load_rows([output])
    assert tables.tables(rows) in capsys.readouterr().out
    for measurement in ("model", "memory of models"):
        chosen = [row for row in rows if row["measurement"] == measurement]
        found = {(row["label"].split(", ")[0], row["mode"]) for row in chosen}
        assert found == PARTS
        assert {row["variant"] for row in chosen} == {"small", "small, dense"}
    networks = {("network", "forward"), ("training step", "forward+backward")}
    expected = {
        (f"{module} in a {part}", mode)
        for part, mode in networks
        for module in ("backbone", "encoder", "decoder", "mask head")
    }
    chosen = [row for row in rows if row["measurement"] == "memory of modules"]
    assert {(row["label"].split(", ")[0], row["mode"]) for row in chosen} == expected
    wholes = {
        (row["variant"], row["label"]): row["extra_bytes"]
        for row in rows
        if row["measurement"] == "memory of models"
    }
    for row in chosen:
        whole = wholes[row["variant"], row["label"].split(" in a ")[1]]
        assert 0 < row["extra_bytes"] < whole
        assert 0 < row["kept_bytes"] < whole
        assert tables._cells(row)[-1] == f"{row['kept_bytes'] / 2**20:.1f} MiB"
    timed = next(row for row in rows if row["measurement"] == "model")
    cell = f"{timed['frames'] / timed['seconds']['median']:.3g}"
    assert f"| {cell} " in tables.tables([timed])


def test_chosen_parts(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    words = ["--quick", "--rounds", "1", "--output", str(output), "--parts", "video to results"]
    assert main(["defvis", *words, "--precision", "bf16"]) == 0
    labels = {row["label"] for row in load_rows([output])}
    assert labels == {"video to results, 6 x 64 x 96, bf16"}
    assert {row["precision"] for row in load_rows([output])} == {"bf16"}
    assert {part for part, _ in PARTS} == set(defvis.PARTS)


def test_parts() -> None:
    small = preset("small")
    parts = prepare_parts(small, 64, 96, 0).calls
    assert set(parts) == PARTS
    masks = parts["network", "forward"]()
    assert masks.shape == (1, small.model.num_slots, 6, 32, 48)
    assert not masks.requires_grad
    # Random weights draw something, so that writing masks is part of what is timed.
    assert (masks > 0).any()
    results = parts["video to results", "forward"]()
    assert {result["video_id"] for result in results} == {1}
    assert any(mask is not None for result in results for mask in result["segmentations"])
    losses = [float(parts["training step", "forward+backward"]()["total"]) for _ in range(8)]
    assert losses[-1] < losses[0]  # it learns its clip
    # Inference after training steps leaves no dropout on.
    assert parts["network", "forward"]().equal(parts["network", "forward"]())


def test_every_part_uses_the_precision() -> None:
    """Rounding to bfloat16 shows, and changes little."""
    small = preset("small")
    exact, rounded = (
        prepare_parts(dataclasses.replace(small, precision=precision), 64, 96, 0).calls
        for precision in ("fp32", "bf16")
    )

    def figures(calls: Mapping[tuple[str, str], Callable[[], Any]]) -> list[torch.Tensor]:
        scores = sorted(result["score"] for result in calls["video to results", "forward"]())
        return [
            calls["network", "forward"](),
            torch.tensor(scores[-20:]),  # whether there is a result may hang on a bit
            calls["training step", "forward+backward"]()["total"],
        ]

    for one, other in zip(figures(exact), figures(rounded), strict=True):
        assert 0 < (other - one).norm() < 0.2 * one.norm()


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda: PyTorch finds no GPU"):
        main(["defvis", "--quick", "--device", "cuda"])


def test_models_are_made_on_the_device_after_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load of a machine that makes models is no other work on it."""
    called: list[object] = []

    def describe(arguments: list[str], device: str) -> dict[str, Any]:
        called.append(device)
        return {"device": "some GPU", "load_average_at_start": 0.0, "cores": 1}

    def made(config: Any, *where: object) -> None:
        called.append((config.precision, *where))
        raise WrongAnswerError("stop")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "describe", describe)
    monkeypatch.setattr(defvis, "prepare_parts", made)
    words = ["--device", "cuda", "--precision", "bf16", "--seed", "7"]
    assert main(["defvis", "--quick", *words]) == 1
    assert called == ["cuda", ("bf16", 64, 96, 7, "cuda")]


def test_memory_on_a_gpu_is_that_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = defvis.Subjects(quick=True, precision="fp32", device="cpu", seed=0)
    subjects._device = "cuda"
    results: list[object] = []

    def allocated(call: Callable[[], object]) -> int:
        results.append(call())
        return 100 * len(results)

    monkeypatch.setattr(defvis, "allocated", allocated)
    rows = [row for row in subjects.measure("network", 1, rounds=1) if "extra_bytes" in row]
    assert [row["extra_bytes"] for row in rows] == [100, 200]
    assert {row["method"] for row in rows} == {"allocator"}
    assert {row["measurement"] for row in rows} == {"memory of models"}
    assert all(isinstance(masks, torch.Tensor) for masks in results)


def test_a_call_waits_for_the_device_and_leaves_no_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(device, "wait_for", waited.append)
    model = prepare_parts(preset("small"), 64, 96, 0)
    waited.clear()
    for call in model.calls.values():
        call()
    assert waited == [torch.device("cpu")] * len(PARTS)
    modules = [module for group in model.modules.values() for module in group]
    assert all(weight.grad is None for module in modules for weight in module.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_wrong_layers_are_not_timed(
    precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = functional.attend

    def wrong(*inputs: Any) -> torch.Tensor:
        return right(*inputs) * (1.1 if inputs[-1] != "reference" else 1.0)

    monkeypatch.setattr(functional, "attend", wrong)
    assert main(["defvis", "--quick", "--rounds", "1", "--precision", precision]) == 1
    assert "wrong answer, nothing was timed: encoder.layers.0" in capsys.readouterr().err


class _Holding(torch.nn.Module):
    """Makes two arrays of a size and gives one."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self._numbers = numbers

    def forward(self) -> torch.Tensor:
        scratch = torch.zeros(self._numbers)
        return scratch + 1


def test_memory_of_modules() -> None:
    first, second, never = _Holding(1000), _Holding(500), _Holding(1)

    def call() -> list[torch.Tensor]:
        before = torch.zeros(3000)
        kept = [first(), second(), second()]
        del before
        return kept

    parts = {"one": (first,), "other": (second,), "never": (never,)}
    peak, found = memory.live_tensors(call, parts)
    # In bytes: at the end 3000 before, 1000 and 500 kept, and the two arrays of the last module.
    assert peak == 4 * (3000 + 1000 + 500 + 2 * 500)
    assert found["one"] == memory.PartMemory(peak=4 * 2000, kept=4 * 1000)
    assert found["other"] == memory.PartMemory(peak=4 * 1000, kept=4 * 1000)
    assert found["never"] == memory.PartMemory()
    call()
    assert not first._forward_hooks
    assert not first._forward_pre_hooks


def test_presets_differ_in_attention_alone() -> None:
    paper, vistr = defvis._paper_configs().values()
    changed = dataclasses.replace(
        vistr.model, encoder_attention="deformable", decoder_attention="deformable"
    )
    assert dataclasses.replace(vistr, model=changed) == paper
