"""`python -m benchmarks models`: both models are checked, timed and shown."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="it comes with the examples")

from benchmarks.__main__ import main
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import MODES
from benchmarks.report import tables
from benchmarks.report.targets import TARGETS
from benchmarks.subjects.transformers_models import FAMILIES, VARIANTS, _Choices, _distance
from stdeform.integrations import _arguments
from stdeform.integrations import transformers as integration
from stdeform.integrations.transformers import families

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


QUICK = ["models", "--quick", "--rounds", "1", "--threads", "1", "--models", "mask2former"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.jsonl"
    assert main([*QUICK, "--output", str(output)]) == 0
    rows = load_rows([output])
    shown = capsys.readouterr().out
    assert tables.tables(rows) in shown
    measured = ("memory of transformers models", "transformers model")
    assert [(row["mode"], row["measurement"], row["variant"]) for row in rows] == [
        (mode, measurement, variant)
        for mode in MODES
        for measurement in measured
        for variant in VARIANTS
    ]
    for row in rows:
        assert (row["label"], row["subject"]) == ("Mask2Former, 128 px", "stdeform")
        assert row["ratio"]["median"] == 1 or row["variant"] == "plain"
    ours, plain = (row["extra_bytes"] for row in rows[:2])
    assert ours < plain  # it keeps no samples
    time = next(row for row in rows if row["measurement"] == measured[1])
    heads = "forward: time [quartiles] | forward: times the first | forward: wall-clock time"
    assert f"| {heads} " in re.sub(" +", " ", shown)
    assert tables._cells(time)[-1] == tables._time(time["wall"]["median"])


def _wrong_result(value: Tensor, *arguments: Any) -> Tensor:
    return _arguments_attend(value, *arguments) + (1e-2 if value.dtype == torch.float32 else 0)


def _wrong_gradient(value: Tensor, shapes: Any, starts: None, *sampled: Tensor) -> Tensor:
    """The right result; of the locations only that."""
    locations, weights = sampled
    return _arguments_attend(value, shapes, starts, locations.detach(), weights)


_arguments_attend = _arguments.attend


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (_wrong_result, "forward: output.class_queries_logits must be that of the plain model"),
        (_wrong_gradient, "forward+backward: only one of the models has gradient of model."),
    ],
)
def test_wrong_answers_are_not_timed(
    wrong: Any, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_arguments, "attend", wrong)
    assert main(QUICK) == 1
    out, error = capsys.readouterr()
    assert "mask2former" not in out.lower()
    assert f"wrong answer, nothing was timed: mask2former, {where}" in error


def test_distance_is_relative_and_infinities_must_agree() -> None:
    inf = float("inf")
    right = torch.tensor([3.0, 4.0, -inf])
    assert _distance(right, right) == 0
    assert _distance(right + torch.tensor([0.0, 0.5, 0.0]), right) == pytest.approx(0.1)
    assert _distance(torch.tensor([3.0, 4.0, 0.0]), right) == inf
    assert _distance(torch.tensor([3.0, inf, -inf]), right) == inf
    assert _distance(torch.tensor([3.0, torch.nan, -inf]), right) == inf
    assert _distance(torch.ones(1), torch.zeros(1)) == inf
    assert _distance(torch.zeros(1), torch.zeros(1)) == 0


def test_choices_are_those_of_the_other_run() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    with _Choices() as choices:
        assert scores.topk(2).indices.tolist() == torch.topk(scores, 2, dim=1)[1].tolist()
    nearly = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    with _Choices(choices.made):
        values, indices = torch.topk(nearly, 2, dim=1)
    assert (values.tolist(), indices.tolist()) == ([[2.0, 3.0]], [[1, 2]])
    values[0, 0].backward()
    assert nearly.grad is not None
    assert nearly.grad.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_model_can_be_made(name: str) -> None:
    with torch.device("meta"):
        model = FAMILIES[name].make(0, small=True)
    assert integration.patch(model)
    assert FAMILIES[name].title in (ROOT / "benchmarks/README.md").read_text()


def test_models_are_those_of_the_integration() -> None:
    assert set(FAMILIES) == set(families._FAMILIES)


def test_targets_are_of_models_that_are_measured() -> None:
    labels = [f"{family.title}, {family.pixels} px" for family in FAMILIES.values()]
    limited = [target for target in TARGETS if target.measurement == "transformers model"]
    assert len(limited) == 2
    assert all(target.label in labels for target in limited)


def test_without_transformers_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="transformers is not installed: pip install "):
        main(["models"])
