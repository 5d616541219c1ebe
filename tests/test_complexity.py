"""How cost grows: fits on costs that are known, counts, the commands, the picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bars, blocks, fit, report
from benchmarks.__main__ import main
from benchmarks.blocks import BLOCKS
from benchmarks.complexity import multiply_adds, operand_bytes
from benchmarks.variants import VARIANTS
from benchmarks.workloads import WORKLOADS

TINY = WORKLOADS["tiny"]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_exponents_are_found(power: float) -> None:
    exact = fit.exponent({n: [3 * n**power] * 3 for n in (10, 20, 40)})
    assert (exact.low, exact.median, exact.high) == pytest.approx((power,) * 3)
    noisy = {n: [3 * n**power * (1 + (i * n) % 7 / 20) for i in range(9)] for n in (10, 20, 40, 80)}
    found = fit.exponent(noisy)
    assert found.low < found.median < found.high
    assert found.low - 0.15 < power < found.high + 0.15


def test_a_machine_that_slows_down_between_rounds_changes_no_exponent() -> None:
    slowdowns = (1.0, 2.0, 1.5)
    found = fit.exponent({n: [5.0 * n * slow for slow in slowdowns] for n in (10, 20, 40)})
    assert (found.low, found.median, found.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="zip"):
        fit.exponent({10: [1.0, 2.0], 20: [1.0]})


def test_crossover() -> None:
    linear, square = ({n: c * n**p for n in (1, 10, 100)} for c, p in ((20.0, 1), (1.0, 2)))
    assert fit.crossover(linear, square) == pytest.approx(20)
    assert fit.crossover(square, linear) is None
    assert fit.crossover({1: 1.0, 2: 1.0}, {1: 2.0, 2: 2.0}) == 1


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("kind", ["deformable", "dense", "dense, naive"])
def test_counts_are_those_of_the_flop_counter(kind: str) -> None:
    names = {"deformable": "native", "dense": "dense", "dense, naive": "dense-naive"}
    cases = [(VARIANTS[names[kind]].prepare(TINY, 0), False)]
    if kind in BLOCKS["attention block"]:
        cases.append((BLOCKS["attention block"][kind](TINY, 0), True))
    for prepared, projections in cases:
        # The counter knows matrix products, but not the fused attention of the CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            prepared.forward()
        # A multiplication and an addition.
        assert counter.get_total_flops() == 2 * multiply_adds(TINY, kind, projections)


@pytest.mark.parametrize("queries", [None, 7])
def test_operands_are_those_of_the_call(queries: int | None) -> None:
    workload = dataclasses.replace(TINY, num_object_queries=queries)
    for kind, name in (("deformable", "reference"), ("dense", "dense")):
        prepared = VARIANTS[name].prepare(workload, 0)
        tensors = (*prepared.inputs, prepared.forward())
        assert operand_bytes(workload, kind) == sum(tensor.nbytes for tensor in tensors)
    scores = workload.num_heads * workload.num_queries * workload.num_cells
    more = operand_bytes(workload, "dense, naive") - operand_bytes(workload, "dense")
    assert more == 4 * 4 * scores


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_learn_from_everything(block: str) -> None:
    for prepare in BLOCKS[block].values():
        prepared = prepare(TINY, 0)
        out, *grads = prepared.forward_backward()
        assert out.shape == prepared.grad_out.shape == (1, TINY.num_cells, 32)
        assert all(grad.abs().max() > 0 for grad in grads)
    deformable, dense = (prepare(TINY, 0) for prepare in BLOCKS[block].values())
    assert deformable.inputs[0].equal(dense.inputs[0])
    assert deformable.grad_out.equal(dense.grad_out)


@pytest.mark.usefixtures("needs_native")
def test_wrong_blocks_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = blocks.DeformableBlock.forward
    monkeypatch.setattr(
        blocks.DeformableBlock,
        "forward",
        lambda self, x: right(self, x) + (x.dtype == torch.float32) * 1e-3,
    )
    assert main(["layers", "--quick", "--rounds", "1"]) == 1
    assert "wrong answer, nothing was timed: the attention block" in capsys.readouterr().err


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("command", ["complexity", "layers"])
def test_commands(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.jsonl"
    words = [command, "--quick", "--rounds", "3", "--threads", "1", "--output", str(output)]
    assert main(words) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert report.tables(rows) in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    assert main(["report", str(output), "--docs", str(page)]) == 0
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    if command == "complexity":
        picture = f"![Time against the number of cells, on {rows[0]['cpu']}, "
        assert picture in page.read_text()
        assert "](complexity.svg)" in page.read_text()
        assert "<svg" in (tmp_path / "complexity.svg").read_text()
        fitted = [row for row in rows if row["measurement"] == "exponent"]
        counted = {row["variant"]: row["counted"] for row in fitted if row["subject"] == "operator"}
        assert counted == pytest.approx({"deformable": 1.0, "dense": 2.0, "dense, naive": 2.0})
        counted = {row["variant"]: row["counted"] for row in fitted if row["subject"] == "decoder"}
        assert counted == pytest.approx({"deformable": 0.0, "dense": 1.0, "dense, naive": 1.0})
        # The same rows give the same picture.
        first = (tmp_path / "complexity.svg").read_bytes()
        main(["report", str(output), "--docs", str(page)])
        assert (tmp_path / "complexity.svg").read_bytes() == first


def test_bars_of_an_interval() -> None:
    bar = next(bar for bar in bars.BARS if bar.figure == "exponent")
    assert bar.limit == "0.95 to 1.05"
    assert [bar.is_met_by(value) for value in (0.94, 1.0, 1.06)] == [False, True, False]
    row = {
        "subject": bar.subject, "measurement": "exponent", "variant": "deformable",
        "mode": bar.mode, "label": bar.label, "threads": 2, "exponent": {"median": 1.01},
    }  # fmt: skip
    verdicts = {verdict.bar: verdict for verdict in bars.judge([row])}
    assert verdicts[bar].word == "pass"
    other = dataclasses.replace(bar, threads=3)
    assert bars._last(other, [row]) is None
