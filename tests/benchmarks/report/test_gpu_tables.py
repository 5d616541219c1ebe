"""Rows of a GPU that does not exist: what `report` and the page of `gpu-check` show of them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.__main__ import main
from benchmarks.commands import report
from benchmarks.costs.gpu_roofline import addition_name, copy_name, gather_name
from benchmarks.gpu.page import page
from benchmarks.measure.recording import SCHEMA
from benchmarks.measure.rows import Row
from benchmarks.report import gpu_tables, tables
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[3]
HEADER: Row = {
    "schema": SCHEMA,
    "suite": "gpu-check",
    "device": "Made-up GPU",
    "capability": "90",
    "commit": "0123456789ab",
    "command": "python -m benchmarks gpu-check alive",
    "driver, clock, power": "1, 2, 3",
    "nvcc": "release 13.0",
    "torch_cuda": "13.0",
}


def _row(name: str, variant: str, mode: str, micro: float, **more: Any) -> Row:
    figures = dict.fromkeys(("median", "q1", "q3"), 1e-6 * micro)
    return {
        "measurement": "latency",
        "label": WORKLOADS[name].label,
        "subject": "native",
        "workload": dataclasses.asdict(WORKLOADS[name]),
        "variant": variant,
        "mode": mode,
        **dict.fromkeys(("seconds", "flushed", "host", "wall"), figures),
        "threads": 8,
        "num_rounds": 3,
        "ratio": {"to": "native", "median": 1.0},
        **more,
    }


# Round numbers.
ROWS = [
    _row(
        *("paper-encoder", "native", "forward", 100.0),
        gathered_bytes=2 * 10**8,
        compulsory_bytes=10**8,
    ),
    _row(
        *("paper-encoder", "native", "backward", 300.0),
        added_numbers=3 * 10**7,
        added="bin by bin",
    ),
    _row("paper-encoder", "ops3d", "forward", 350.0, ratio={"to": "native", "median": 3.5}),
    *(
        {
            "measurement": "device ceiling",
            "label": name,
            "per_second": dict.fromkeys(("median", "q1", "q3"), rate),
        }
        for name, rate in (
            (addition_name(4, "spread"), 4e11),
            (gather_name(192, "L1"), 8e12),
            (gather_name(192, "L2"), 4e12),
            (gather_name(96, "L1"), 1e12),
            (copy_name("DRAM"), 2e12),
        )
    ),
]


def _squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


def _complete(rows: list[Row]) -> list[Row]:
    return [{**HEADER, **row} for row in rows]


def test_report_shows_a_gpu_in_a_section_of_its_own(tmp_path: Path) -> None:
    results, docs = tmp_path / "gpu.jsonl", tmp_path / "page.md"
    results.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, *ROWS)))
    docs.write_text(f"{report.BEGIN}{report.END}")
    cpu = str(ROOT / "benchmarks/results/layers.jsonl")
    main(["report", cpu, "--docs", str(docs)])
    without = docs.read_text().removesuffix(f"\n{report.END}")
    assert "GPU" not in without
    main(["report", cpu, str(results), "--docs", str(docs)])
    assert docs.read_text().startswith(without)
    shown = _squeezed(docs.read_text().removeprefix(without))
    assert "### On Made-up GPU" in shown
    about = "| paper-encoder, float32 |"
    assert f"{about} device time | forward | <= 135 us | 100.00 | pass | Made-up GPU |" in shown
    assert f"{about} device time | backward | <= 200 us | 300.00 | FALLS SHORT |" in shown
    assert f"{about} forward | ops3d | 350.0 |" in shown
    faster = "times faster than 3-D baselines"
    assert f"{about} {faster} | forward | >= 4x | 3.50 ops3d | FALLS SHORT |" in shown
    assert "| 0123456789ab |" in shown.partition("### Where")[2]
    main(["report", str(results), "--docs", str(docs)])
    assert "### On Made-up GPU" in docs.read_text()


def test_the_page_compares_what_was_moved_with_what_can_be() -> None:
    shown = _squeezed(page({}, _complete(ROWS)))
    # 2e8 bytes in 1e-4 s are 2 TB/s, 1e8 are 1 TB/s.
    assert "| paper-encoder, float32 | 2000 | 25% | 50% | 1000 | 50% |" in shown
    # 3e7 numbers in 3e-4 s are 100 G/s; one at once was not measured.
    assert "| paper-encoder, float32 | bin by bin | 100.0 | - | 25% |" in shown
    assert "| gather of 192 bytes, L1 | 8000 | 8000 | 8000 |" in shown
    shown = _squeezed(gpu_tables.section(_complete(ROWS[:2])))
    assert "| 2000 | - | - | 1000 | - |" in shown
    assert "ceiling" not in shown


def test_a_wrong_answer_is_marked() -> None:
    rows = [{**ROWS[0], "wrong": "by far"}]
    assert "native (WRONG)" in gpu_tables.times(rows)
    assert "| WRONG ANSWER " in tables.tables(_complete(rows))


def test_models_have_frames_per_second_and_memory() -> None:
    seconds = dict(zip(("median", "q1", "q3"), (0.09, 0.08, 0.1), strict=True))
    about = {"label": "network, 36 x 300 x 533", "variant": "paper", "frames": 36}
    rows = [
        {"measurement": "model", **about, "seconds": seconds, "ratio": {"median": 1.0}},
        {"measurement": "memory of models", **about, "extra_bytes": 3 * 2**30},
    ]
    line = "| network, 36 x 300 x 533 | paper | 90.0 [80.0, 100.0] | 400.0 | 1.00 | {} |"
    assert line.format(3072) in _squeezed(tables.tables(_complete(rows)))
    assert line.format("-") in _squeezed(page({}, _complete(rows[:1])))


def test_the_deterministic_backward_has_a_target_and_is_no_baseline() -> None:
    ratio = {"to": "native", "median": 1.5}
    rows = [_row("paper-encoder", "native-deterministic", "backward", 150.0, ratio=ratio)]
    shown = _squeezed(gpu_tables.section(_complete(rows)))
    about = "| paper-encoder, float32 |"
    over = "deterministic: time over the default"
    assert f"{about} {over} | backward | <= 2x | 1.50 | pass |" in shown
    assert f"{about} times faster than 3-D baselines | backward | >= 4x | - |" in shown
