"""`python -m benchmarks gpu-rows`: a made-up check as rows of results, and what report shows."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.costs.gpu_roofline import addition_name, copy_name, gather_name
from benchmarks.gpu.gpu_record import NAME, Record, Stage, read
from benchmarks.measure.recording import load_rows
from benchmarks.measure.timing import spread
from benchmarks.report import gpu_page, gpu_rows, report
from benchmarks.workloads import WORKLOADS
from tests.support.gpu_results import assert_gpu_schema

ROOT = Path(__file__).parents[3]


def _row(name: str, variant: str, mode: str, micro: float, **more: object) -> dict[str, Any]:
    figures = dataclasses.asdict(spread([1e-6 * micro] * 3))
    return {
        "label": WORKLOADS[name].label,
        "workload": dataclasses.asdict(WORKLOADS[name]),
        "variant": variant,
        "mode": mode,
        **dict.fromkeys(("seconds", "flushed", "host", "wall"), figures),
        "rounds": [1e-6 * micro] * 3,
        "ratio": {"to": "native", "median": 1.0, "q1": 1.0, "q3": 1.0},
        **more,
    }


# Round numbers of a GPU that does not exist: the rows of each stage.
CHECK: dict[str, Any] = {
    "environment": [
        {
            "device": "Made-up GPU",
            "capability": "90",
            "commit": "0123456789ab",
            "command": "python -m benchmarks gpu-check alive",
            "cpu": "some",
            "cores": 2,
            "simd": "avx2",
            "system": "Linux x86_64",
            "python": "3.12.0",
            "torch": "2.11.0",
            "stdeform": "0.1.0",
            "load_average_at_start": 0.1,
            "time": "2026-01-01T00:00:00+00:00",
            "nvcc": "release 13.0",
            "torch_cuda": "13.0",
            "multiprocessors": 1,
            "memory_bytes": 1,
            "driver, clock, power": "1, 2, 3",
        }
    ],
    "benchmark": [
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
    ],
    "ceilings": [
        {"ceiling": name, "rate": dict.fromkeys(("median", "q1", "q3"), rate)}
        for name, rate in (
            (addition_name(4, "spread"), 4e11),
            (gather_name(192, "L1"), 8e12),
            (gather_name(192, "L2"), 4e12),
            (gather_name(96, "L1"), 1e12),
            (copy_name("DRAM"), 2e12),
        )
    ],
    "peers": [
        {"peer": "mmcv", "rows": [_row("detr-encoder", "mmcv", "forward", 70.0)], "reason": ""},
        {"peer": "ops3d", "rows": [], "reason": "not installed"},
    ],
}


def _write(folder: Path, check: dict[str, Any]) -> Path:
    for name, rows in check.items():
        record = Record(folder, name)
        record.begin("then")
        for row in rows:
            record.row(row)
        record.end(passed=True, seconds=1)
    return folder / NAME


def _read(tmp_path: Path, check: dict[str, Any]) -> dict[str, Stage]:
    return read(_write(tmp_path, check))


def _squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


def test_rows_say_what_where_and_how(tmp_path: Path) -> None:
    output = tmp_path / "results" / "gpu.jsonl"
    check = _write(tmp_path, CHECK)
    assert main(["gpu-rows", str(check), "--output", str(output)]) == 0
    rows = load_rows([output])
    assert [row["measurement"] for row in rows] == [
        *["device time"] * 2,
        "device time of peers",
        *["device ceiling"] * 5,
    ]
    for row in rows:
        assert_gpu_schema(row)
        assert (row["device"], row["commit"]) == ("Made-up GPU", "0123456789ab")
    assert rows[0]["seconds"]["median"] == pytest.approx(1e-4)
    assert rows[2]["variant"] == "mmcv"


def test_report_shows_a_gpu_in_a_section_of_its_own(tmp_path: Path) -> None:
    results, page = tmp_path / "gpu.jsonl", tmp_path / "page.md"
    check = _write(tmp_path, CHECK)
    main(["gpu-rows", str(check), "--output", str(results)])
    page.write_text(f"{report.BEGIN}{report.END}")
    cpu = str(ROOT / "benchmarks/results/layers.jsonl")
    main(["report", cpu, "--docs", str(page)])
    without = page.read_text().removesuffix(f"\n{report.END}")
    assert "GPU" not in without
    main(["report", cpu, str(results), "--docs", str(page)])
    assert page.read_text().startswith(without)
    shown = _squeezed(page.read_text().removeprefix(without))
    assert "### On Made-up GPU" in shown
    assert "| paper-encoder, float32 | forward | device time <= 135 us | 100.0 us | pass |" in shown
    assert "| paper-encoder, float32 | backward | device time <= 200 us | 300.0 us | FALL" in shown
    assert "| detr-encoder, float32 | forward | mmcv | 70.0 |" in shown
    assert "| commit | 0123456789ab |" in shown


def test_peers_are_among_the_anchors_of_the_verdicts(tmp_path: Path) -> None:
    check = copy.deepcopy(CHECK)
    row = _row("paper-encoder", "ops3d", "forward", 350.0)
    row["ratio"] |= {"median": 3.5}
    check["peers"][1] = {"peer": "ops3d", "rows": [row], "reason": ""}
    stages = _read(tmp_path, check)
    verdict = "| forward | >= 4x faster than anchor | 3.50x ops3d | FALLS SHORT |"
    assert verdict in _squeezed(gpu_page.page(stages))
    assert verdict in _squeezed(gpu_rows.sections(list(gpu_rows.rows(stages))))


def test_a_gpu_alone_can_be_shown(tmp_path: Path) -> None:
    results, page = tmp_path / "gpu.jsonl", tmp_path / "page.md"
    check = _write(tmp_path, CHECK)
    main(["gpu-rows", str(check), "--output", str(results)])
    page.write_text(f"{report.BEGIN}{report.END}")
    assert main(["report", str(results), "--docs", str(page)]) == 0
    assert "### On Made-up GPU" in page.read_text()


@pytest.mark.parametrize(
    ("stage", "change", "complaint"),
    [
        ("environment", {"device": "cpu"}, "it has not run on a GPU"),
        ("environment", {"commit": None}, r"it ran on the commit \?; .* STDEFORM_COMMIT"),
        ("environment", {"commit": "0123-dirty"}, "it ran on the commit 0123-dirty; run it on a"),
        ("environment", {}, "nothing was timed"),
    ],
)
def test_a_check_that_proves_nothing_makes_no_rows(
    stage: str, change: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    check = copy.deepcopy(CHECK)
    check[stage][0] |= change
    if not change:
        check = {stage: check[stage]}
    output = tmp_path / "gpu.jsonl"
    path = _write(tmp_path, check)
    with pytest.raises(SystemExit, match=complaint):
        main(["gpu-rows", str(path), "--output", str(output)])
    assert not output.exists()


def test_a_check_of_a_few_stages_makes_what_rows_it_can(tmp_path: Path) -> None:
    few = _read(tmp_path, {name: CHECK[name] for name in ("environment", "benchmark")})
    rows = list(gpu_rows.rows(few))
    assert [row["measurement"] for row in rows] == ["device time"] * 2
    read, added, given = gpu_page.shares(rows, {})
    assert "| - " in read
    assert "| - " in added
    assert not given


def test_the_page_holds_what_was_read_against_what_can_be(tmp_path: Path) -> None:
    shown = _squeezed(gpu_page.page(_read(tmp_path, CHECK)))
    # 2e8 bytes in 1e-4 s are 2 TB/s, 1e8 are 1 TB/s.
    assert "| paper-encoder, float32 | 2000 | 25% | 50% | 1000 | 50% |" in shown
    # 3e7 numbers in 3e-4 s are 100 G/s; one at once was not measured.
    assert "| paper-encoder, float32 | bin by bin | 100.0 | - | 25% |" in shown
    assert "| gather of 192 bytes, L1 | 8000 | 8000 | 8000 |" in shown
    assert "- mmcv: timed" in shown
    assert "- ops3d: not installed" in shown


def test_rows_of_several_commands_are_put_together(tmp_path: Path) -> None:
    paths = []
    for name, stage in (("first", "benchmark"), ("second", "ceilings")):
        parts = {each: CHECK[each] for each in ("environment", stage)}
        paths.append(str(_write(tmp_path / name, parts)))
    output = tmp_path / "gpu.jsonl"
    assert main(["gpu-rows", *paths, "--output", str(output)]) == 0
    rows = load_rows([output])
    assert [row["measurement"] for row in rows] == ["device time"] * 2 + ["device ceiling"] * 5


def test_a_wrong_answer_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = copy.deepcopy(CHECK)
    check["benchmark"][0] |= {"wrong": "WrongAnswerError: by far"}
    output = tmp_path / "gpu.jsonl"
    assert main(["gpu-rows", str(_write(tmp_path, check)), "--output", str(output)]) == 0
    assert "1 rows are left out, their answers were wrong" in capsys.readouterr().out
    timed = load_rows([output])
    assert (timed[0]["measurement"], timed[0]["mode"]) == ("device time", "backward")
