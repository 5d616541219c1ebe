"""The tasks ask for what they say; the program; the table in the docs."""

from __future__ import annotations

import json
from pathlib import Path

import compare_tasks
import pytest
import torch
from torch import Tensor

from defvis.comparisons import tasks
from defvis.comparisons.tasks import CELLS, KINDS, SHAPE, TASKS, VALUES, WINDOW

ROOT = Path(__file__).resolve().parents[3]
T, H, W = SHAPE
# Standard deviation of the rows, and of the columns, of a square of 3 x 3 cells.
SQUARE = torch.full((2,), 0.75**0.5)


def value_at(features: Tensor, t: int, y: int, x: int) -> Tensor:
    return features[(t * H + y) * W + x, :VALUES]


@pytest.mark.parametrize("task", ["fixed place", "told place"])
def test_places(task: str) -> None:
    torch.manual_seed(0)
    clips = TASKS[task]()
    features, target, counts = clips.features[1], clips.target[1], clips.counts[1]
    asked = 0
    for t in range(T):
        for y in range(H):
            for x in range(W):
                cell = (t * H + y) * W + x
                step = [1, 2, 1]
                if task == "told place":
                    step = (
                        (features[cell, VALUES:] * torch.tensor([1, 2, 3])).round().int().tolist()
                    )
                    assert all(abs(a) <= b for a, b in zip(step, (1, 2, 3), strict=True))
                to = t + step[0], y + step[1], x + step[2]
                inside = all(0 <= a < b for a, b in zip(to, SHAPE, strict=True))
                assert counts[cell] == inside
                if inside:
                    asked += 1
                    assert target[cell].equal(value_at(features, *to))
    assert asked > CELLS / 2


def test_same_look() -> None:
    torch.manual_seed(0)
    clips = TASKS["same look"]()
    features, target = clips.features[2], clips.target[2]
    keys = features[:, VALUES:]
    alike = (keys[:, None] == keys).all(-1)
    assert (alike.sum(1) == 2).all(), "each cell and one other"
    alike.fill_diagonal_(fill_value=False)
    assert target.equal(features[alike.int().argmax(1), :VALUES])


def test_same_object() -> None:
    torch.manual_seed(0)
    clips = TASKS["same object"]()
    noise = clips.features - clips.target
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert not clips.target[~clips.counts].any()
    moved = 0
    for target, counts in zip(clips.target, clips.counts, strict=True):
        colours, cells = target[counts].unique(dim=0, return_counts=True)
        assert 1 <= len(colours) <= 3
        assert cells.max() <= 9 * T
        places = [(target.view(*SHAPE, VALUES) == colour).all(-1) for colour in colours]
        alone = [place for place in places if all(frame.sum() == 9 for frame in place)]
        for place in alone:  # Neither hidden nor cut: a square that moves evenly.
            middles = torch.stack([frame.nonzero().float().mean(0) for frame in place])
            moves = middles.diff(dim=0)
            assert moves.equal(moves[:1].expand_as(moves))
            assert all(frame.nonzero().float().std(0).allclose(SQUARE) for frame in place)
        moved += len(alone)
    assert moved


def test_everything() -> None:
    torch.manual_seed(0)
    clips = TASKS["everything"]()
    means = clips.features.mean(1) * CELLS**0.5
    torch.testing.assert_close(clips.target[:, 5], means)
    assert clips.target.std(1).max() == 0


def test_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks at one rate; a fixed place is learned by points in few steps."""
    few = {task: TASKS[task] for task in ("fixed place", "everything")}
    monkeypatch.setattr(tasks, "TASKS", few)
    monkeypatch.setattr(tasks, "RATES", (4e-3,))
    compare_tasks.main(["--out", str(tmp_path), "--steps", "100", "--seeds", "1"])
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert list(found) == list(few)
    for kinds in found.values():
        assert list(kinds) == list(KINDS)
        assert all(
            len(curve) == 100 // WINDOW for runs in kinds.values() for curve in runs["curves"]
        )
    (deformable,), (dense,) = (found["fixed place"][kind]["curves"] for kind in KINDS)
    assert deformable[-1] > dense[-1] + 0.5
    assert (tmp_path / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_steps_that_no_curve_would_show_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="steps must be a multiple of 20, got 110"):
        compare_tasks.main(["--out", str(tmp_path), "--steps", "110"])


def test_the_table_in_the_docs_is_of_the_recorded_curves() -> None:
    found = json.loads((ROOT / "examples/results/tasks.json").read_text())
    page = (ROOT / "docs/internals/experiments.md").read_text().splitlines()
    for task, cells in tasks.to_rows(found).items():
        assert any(row.startswith(f"| {task} |") and row.endswith(f"| {cells} |") for row in page)
