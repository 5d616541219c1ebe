"""The benchmark command: rows, refusals, bars, report."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import time
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.measure import compiled, environment, timing
from benchmarks.measure.measurements import compare
from benchmarks.measure.recording import load_rows
from benchmarks.report import bars, gpu_rows, report
from benchmarks.subjects import registry
from benchmarks.subjects.base import ALL_MODES
from benchmarks.workloads import WORKLOADS
from stdeform import _native
from tests.support.gpu_results import assert_gpu_schema

ROOT = Path(__file__).parents[3]
OURS = "reference" if _native.missing("cpu") else "native"

COMMON = {
    "schema", "suite", "device", "cpu", "cores", "simd", "system", "python", "torch", "stdeform",
    "commit", "command", "load_average_at_start", "time",
    "measurement", "workload", "label", "subject", "threads", "load_average", "variant", "mode",
}  # fmt: skip
TIMED = COMMON | {"seconds", "num_rounds", "ratio"}
FITTED = COMMON - {"workload", "load_average"}
FIELDS = {
    "latency": TIMED,
    "scaling": TIMED,
    "growth": TIMED,
    "overhead": TIMED,
    "memory": COMMON | {"extra_bytes", "method", "ratio"},
    "bandwidth": COMMON | {"corner_bytes", "bytes_per_second", "ceiling", "ceiling_vector_bytes"},
    "attention block": TIMED,
    "encoder layer": TIMED,
    "complexity": TIMED | {"axis", "cells", "multiply_adds", "operand_bytes"},
    "exponent": FITTED | {"axis", "exponent", "counted", "sizes", "fitted_rounds"},
    "crossover": FITTED | {"axis", "cells", "smallest"},
    "model": TIMED - {"workload"} | {"frames", "pixels"},
    "memory of models": COMMON - {"workload"}
    | {"extra_bytes", "method", "ratio", "frames", "pixels"},
    "memory of modules": COMMON - {"workload"}
    | {"extra_bytes", "kept_bytes", "method", "ratio", "frames", "pixels"},
    "memory by size": COMMON | {"cells", "extra_bytes", "method", "ratio"},
    **dict.fromkeys(
        ("sweep of num_points", "sweep of head_dim", "sweep of num_object_queries"),
        TIMED | {"cells", "multiply_adds", "operand_bytes", "size"},
    ),
}


def _assert_schema(row: bars.Row) -> None:
    assert set(row) == FIELDS[row["measurement"]]
    assert row["schema"] == 2
    assert row["mode"] in ALL_MODES
    assert row["command"].startswith(f"python -m benchmarks {row['suite']} ")
    assert row["threads"] >= 1
    if "num_rounds" in row:
        assert row["num_rounds"] >= 1
        assert row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
        assert row["ratio"]["to"]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[bars.Row]]:
    """The arguments and the rows of a real, tiny run."""
    output = tmp_path_factory.mktemp("results") / "tiny.jsonl"
    measured = ["latency", "scaling", "growth", "overhead"]
    if compiled.compiler():
        measured.append("bandwidth")
    chosen = ["--variants", OURS, "composite", "dense", "--measure", *measured]
    arguments = ["operator", "tiny", *chosen, "--rounds", "3", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_BLOCK_SECONDS", 0.01)
        assert main(arguments) == 0
    return arguments, load_rows([output])


def test_rows_say_what_where_and_how(tiny_run: tuple[list[str], list[bars.Row]]) -> None:
    arguments, rows = tiny_run
    for row in rows:
        _assert_schema(row)
        assert row["command"].split()[3:] == arguments
        assert row["torch"] == torch.__version__
        assert row["subject"] == OURS
    timed = {(row["measurement"], row["variant"], row["mode"]) for row in rows}
    expected = itertools.product(["latency"], [OURS, "composite", "dense"], ALL_MODES)
    assert set(expected) < timed


def test_figures_are_those_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_BLOCK_SECONDS", 0.01)
    tasks = [timing.Task(name, functools.partial(time.sleep, 1e-4), 1) for name in ("a", "b")]
    (_, ours), (_, theirs) = compare(tasks, seconds=0, rounds=3)
    for row in (ours, theirs):
        assert row["seconds"] == dataclasses.asdict(timing.spread(row["rounds"]))
    pairs = zip(theirs["rounds"], ours["rounds"], strict=True)
    assert theirs["ratio"]["median"] == sorted(other / own for other, own in pairs)[1]


def test_a_run_is_recorded_as_a_header_and_rows_of_their_own(
    tiny_run: tuple[list[str], list[bars.Row]], tmp_path: Path
) -> None:
    output = Path(tiny_run[0][-1])
    header, *rows = (json.loads(text) for text in output.read_text().splitlines())
    assert len(header) == 14
    assert all(header.keys().isdisjoint(row) for row in rows)
    assert [{**header, **row} for row in rows] == tiny_run[1]
    two = tmp_path / "two.jsonl"
    other = json.dumps({**header, "cpu": "another"}) + "\n" + json.dumps(rows[0]) + "\n"
    two.write_text(output.read_text() + other)
    assert load_rows([two]) == [*tiny_run[1], {**tiny_run[1][0], "cpu": "another"}]
    two.write_text(json.dumps({**header, "schema": 1, **rows[0]}) + "\n")
    with pytest.raises(SystemExit, match=r"two\.jsonl has no header of schema 2"):
        load_rows([two])


@pytest.mark.parametrize("measurement", ["scaling", "growth", "overhead"])
def test_every_time_is_taken_in_every_mode(
    measurement: str, tiny_run: tuple[list[str], list[bars.Row]]
) -> None:
    modes = [row["mode"] for row in tiny_run[1] if row["measurement"] == measurement]
    assert tuple(dict.fromkeys(modes)) == ALL_MODES


def test_growth_and_scaling_rows_say_what_they_compare(
    tiny_run: tuple[list[str], list[bars.Row]],
) -> None:
    growth = [row for row in tiny_run[1] if row["measurement"] == "growth"]
    assert [row["label"] for row in growth[:2]] == ["tiny, float32", "tiny-double, float32"]
    scaling = [row for row in tiny_run[1] if row["measurement"] == "scaling"]
    assert [row["threads"] for row in scaling[:2]] == [torch.get_num_threads(), 1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["operator", "paper"], "must be one of paper-encoder, "),
        (["operator", "--rounds", "0"], "must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert complaint in capsys.readouterr().err


def test_contradictions_are_refused() -> None:
    with pytest.raises(SystemExit, match="choose workloads, or --all, or --quick"):
        main(["operator", "tiny", "--quick"])


def test_missing_native_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "missing", lambda device: "not built")
    with pytest.raises(SystemExit, match=r"not built; without it: --variants reference"):
        main(["operator", "tiny"])


def _row(bar: bars.Bar, value: float) -> bars.Row:
    figures = {"ratio": {"to": "?", "median": None}, bar.figure: {"to": "?", "median": value}}
    return {
        "subject": bar.subject,
        "cpu": "one",
        "cores": 2,
        "simd": "avx2",
        "measurement": bar.measurement,
        "variant": bar.variant,
        "mode": bar.mode,
        "label": bar.label,
        "threads": bar.threads,
        **figures,
    }


@pytest.mark.parametrize("bar", bars.BARS, ids=lambda bar: f"{bar.says}, {bar.mode}")
def test_bar_judges_its_own_row_only(bar: bars.Bar) -> None:
    limit = bar.at_least if bar.at_least is not None else bar.at_most
    assert limit is not None
    better, worse = (1.01, 0.99) if bar.at_least is not None else (0.99, 1.01)

    def word(row: bars.Row) -> list[str]:
        return [verdict.word for verdict in bars.judge([row]) if verdict.bar == bar]

    assert word(_row(bar, limit * better)) == ["pass"]
    assert word(_row(bar, limit * worse)) == ["FALLS SHORT"]
    for other in ({"subject": "reference"}, {"threads": 1}, {"mode": "?"}, {"label": "tiny"}):
        assert word({**_row(bar, limit * better), **other}) == ["not measured"]


@pytest.mark.parametrize("bar", bars.BARS, ids=lambda bar: f"{bar.says}, {bar.mode}")
def test_the_verdict_can_be_read_off_the_figure(bar: bars.Bar) -> None:
    scale = 1e6 if bar.figure == "seconds" else 1
    for limit in filter(None, (bar.at_least, bar.at_most)):
        for share in (0.5, 0.9996, 1 - 1e-6, 1.0, 1 + 1e-6, 1.0004, 2.0):
            value = limit * share
            shown = bar.show(value)
            assert bar.is_met_by(float(shown) / scale) == bar.is_met_by(value)
            assert len(shown.partition(".")[2]) >= 2
            assert float(shown) / scale == pytest.approx(value, abs=0.00501 / scale)


def test_no_more_digits_are_shown_than_the_verdict_needs() -> None:
    (growth, *_) = (bar for bar in bars.BARS if bar.says == "time for twice the cells")
    assert [growth.show(value) for value in (2.0964, 2.1037, 2.1, 2.10002)] == [
        *("2.10", "2.104", "2.10"),
        "2.10002",
    ]
    (overhead,) = (bar for bar in bars.BARS if bar.figure == "seconds")
    assert [overhead.show(value) for value in (13.2e-6, 15.0012e-6)] == ["13.20", "15.001"]


def test_the_last_row_of_each_machine_counts() -> None:
    bar = bars.BARS[0]
    rows = [_row(bar, 1.0), _row(bar, 100.0), {**_row(bar, 2.0), "cpu": "other"}]
    verdicts = [verdict for verdict in bars.judge(rows) if verdict.bar == bar]
    assert [(verdict.value, verdict.word) for verdict in verdicts] == [
        *((100.0, "pass"), (2.0, "FALLS SHORT")),
    ]


def test_report_replaces_the_results_of_the_page(
    tiny_run: tuple[list[str], list[bars.Row]], tmp_path: Path
) -> None:
    results, page = tiny_run[0][-1], tmp_path / "page.md"
    page.write_text((ROOT / "docs/benchmarks.md").read_text())
    assert main(["report", results, "--docs", str(page)]) == 0
    once = page.read_text()
    assert main(["report", results, "--docs", str(page)]) == 0
    assert page.read_text() == once
    before = (ROOT / "docs/benchmarks.md").read_text().split(report.BEGIN)[0]
    assert once.startswith(before)
    assert "| forward: time [quartiles] | forward: times" in _squeezed(once)
    assert "| backward: time [quartiles] | backward: times" in _squeezed(once)
    bandwidth = [row for row in tiny_run[1] if row["measurement"] == "bandwidth"]
    for row in bandwidth:
        assert f"{row['ceiling']['DRAM'] / 1e9:.0f} GB/s (" in once.partition("forward: DRAM")[2]
    composite = next(row for row in tiny_run[1] if row["variant"] == "composite")
    assert f"{composite['ratio']['median']:.2f}x" in once
    assert composite["commit"] is None or composite["commit"] in once


def _on(cpu: str, rows: list[bars.Row]) -> list[bars.Row]:
    return [{**row, "cpu": cpu} for row in rows]


def _squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


def test_rows_of_different_machines_share_no_table(
    tiny_run: tuple[list[str], list[bars.Row]],
) -> None:
    latency = [row for row in tiny_run[1] if row["measurement"] == "latency"]
    scaling = [row for row in tiny_run[1] if row["measurement"] == "scaling"]
    again = [row for row in latency if row["variant"] == OURS]
    rows = [*_on("One CPU", latency), *_on("Other CPU", scaling), *_on("Other CPU", again)]
    shown = _squeezed(report.tables(rows))
    about = f"{latency[0]['cores']} cores, {latency[0]['simd']}"
    both = shown.partition("### Latency")[2].partition("###")[0]
    one, other = both.partition(f"On Other CPU, {about}:")[::2]
    assert one.strip().startswith(f"On One CPU, {about}:")
    # What was measured again on another machine stands under both.
    assert (one.count(f"| {OURS} |"), other.count(f"| {OURS} |")) == (1, 1)
    assert (one.count("| composite |"), other.count("| composite |")) == (1, 0)
    alone = shown.partition("### Thread scaling")[2].partition("###")[0]
    assert f"On Other CPU, {about}:" in alone
    assert "One CPU" not in alone


def test_every_run_and_every_verdict_names_its_machine(
    tiny_run: tuple[list[str], list[bars.Row]],
) -> None:
    overhead = [row for row in tiny_run[1] if row["measurement"] == "overhead"]
    mine = [{**row, "subject": "native", "variant": "native", "threads": 2} for row in overhead]
    theirs = [{**row, "command": "python -m benchmarks other --output b.jsonl"} for row in mine]
    shown = _squeezed(report.tables([*_on("One CPU", mine), *_on("Other CPU", theirs)]))
    about = f"{overhead[0]['cores']} cores, {overhead[0]['simd']}"
    verdicts = [line for line in shown.splitlines() if "| host overhead of a call |" in line]
    assert [verdict.split(" | ")[-1] for verdict in verdicts] == [
        f"{cpu} CPU, {about} |" for cpu in ("One", "Other")
    ]
    runs = shown.partition("### Where")[2].strip().splitlines()[2:]
    assert [run.split(" | ")[0] for run in runs] == [f"| One CPU, {about}", f"| Other CPU, {about}"]
    assert runs[0].endswith(f"| {overhead[0]['command']} |")
    assert runs[1].endswith("| python -m benchmarks other --output b.jsonl |")


def test_report_needs_a_page_with_room_for_results(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    results = tmp_path / "rows.jsonl"
    results.touch()
    with pytest.raises(SystemExit, match="has no lines"):
        main(["report", str(results), "--docs", str(page)])


def test_page_shows_the_committed_results_and_nothing_else(tmp_path: Path) -> None:
    results = sorted((ROOT / "benchmarks/results").glob("*.jsonl"))
    if not results:
        pytest.skip("no results committed yet")
    for row in load_rows(results):
        (assert_gpu_schema if row["suite"] == gpu_rows.SUITE else _assert_schema)(row)
        assert not row["commit"].endswith("-dirty")
    page, copy = ROOT / "docs/benchmarks.md", tmp_path / "page.md"
    copy.write_text(page.read_text())
    assert main(["report", *map(str, results), "--docs", str(copy)]) == 0
    assert copy.read_text() == page.read_text()


def test_environment_names_commit_and_command() -> None:
    about = environment.describe(["operator", "--output", "a b.jsonl"])
    assert about["command"] == "python -m benchmarks operator --output 'a b.jsonl'"
    assert about["commit"] is None or re.fullmatch(r"[0-9a-f]{12,}(-dirty)?", about["commit"])


def test_docs_name_every_workload_and_variant() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    missing = [name for name in (*WORKLOADS, *registry.IMPLEMENTATIONS) if f"`{name}`" not in page]
    assert missing == []
