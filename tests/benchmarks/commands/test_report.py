"""The benchmark command: rows, refusals, bars, report."""

from __future__ import annotations

import argparse
import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.commands import report
from benchmarks.measure import compiled, environment
from benchmarks.measure.recording import Recorder, load_rows
from benchmarks.measure.rows import ALL_MODES, Row
from benchmarks.report import tables
from benchmarks.subjects import registry
from benchmarks.workloads import WORKLOADS
from stdeform import _native

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
    "parts": TIMED - {"ratio"} | {"samples", "parts"},
    "scaling": TIMED,
    "threads": TIMED | {"busy"},
    "growth": TIMED,
    "overhead": TIMED,
    "memory": COMMON | {"extra_bytes", "method", "ratio"},
    "bandwidth": COMMON | {"corner_bytes", "bytes_per_second", "ceiling", "ceiling_vector_bytes"},
    "attention block": TIMED,
    "encoder layer": TIMED,
    "complexity": TIMED | {"cells", "multiply_adds"},
    "exponent": FITTED | {"exponent", "counted", "sizes", "fitted_rounds"},
    "crossover": FITTED | {"cells", "smallest"},
    "model": TIMED - {"workload"} | {"frames", "pixels"},
    "memory of models": COMMON - {"workload"}
    | {"extra_bytes", "method", "ratio", "frames", "pixels"},
    "memory of modules": COMMON - {"workload"}
    | {"extra_bytes", "kept_bytes", "method", "ratio", "frames", "pixels"},
    "transformers model": TIMED - {"workload"} | {"wall"},
    "memory of transformers models": COMMON - {"workload"} | {"extra_bytes", "method", "ratio"},
    "exported model": TIMED - {"workload"} | {"wall", "version", "nodes", "file_bytes"},
    "memory of exported models": COMMON - {"workload"} | {"extra_bytes", "method", "ratio"},
}


RUN = COMMON - {
    "workload", "subject", "threads", "load_average", "variant", "mode",
} | {
    "capability", "multiprocessors", "memory_bytes", "driver, clock, power", "nvcc", "torch_cuda",
}  # fmt: skip
GPU_FIELDS = {
    "latency": TIMED | RUN | {"flushed", "host", "wall"},
    "device ceiling": RUN | {"per_second"},
    "kernels": RUN | {"mode", "kernel", "launches", "kernel_seconds"},
    "tuning": RUN | {"mode", "variant", "forced", "seconds", "num_rounds", "ratio"},
}
DETAILS = {"gathered_bytes", "compulsory_bytes", "added_numbers", "added", "backend"}


def _assert_schema(row: Row) -> None:
    fields = FIELDS if row["device"] == "cpu" else GPU_FIELDS
    assert set(row) - DETAILS == fields[row["measurement"]]
    assert row["schema"] == 2
    assert row.get("mode", "forward") in ALL_MODES
    assert row["command"].startswith(f"python -m benchmarks {row['suite']} ")
    assert row.get("threads", 1) >= 1
    if "num_rounds" in row:
        assert row["num_rounds"] >= 1
        assert row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
    if "ratio" in row:
        assert row["ratio"]["to"]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[Row]]:
    """The arguments and the rows of a real, tiny run."""
    output = tmp_path_factory.mktemp("results") / "tiny.jsonl"
    measured = ["latency", "scaling", "growth", "overhead"]
    if compiled.compiler():
        measured.append("bandwidth")
    chosen = ["--variants", OURS, "composite", "dense", "--measure", *measured]
    arguments = ["operator", "tiny", *chosen, "--rounds", "3", "--output", str(output)]
    assert main(arguments) == 0
    return arguments, load_rows([output])


def test_rows_say_what_where_and_how(tiny_run: tuple[list[str], list[Row]]) -> None:
    arguments, rows = tiny_run
    for row in rows:
        _assert_schema(row)
        assert row["command"].split()[3:] == arguments
        assert row["torch"] == torch.__version__
        assert row["subject"] == OURS
    timed = {(row["measurement"], row["variant"], row["mode"]) for row in rows}
    expected = itertools.product(["latency"], [OURS, "composite", "dense"], ALL_MODES)
    assert set(expected) < timed


def test_a_run_is_recorded_as_a_header_and_rows_of_their_own(
    tiny_run: tuple[list[str], list[Row]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    two.write_text(output.read_text()[:-9])  # the run was stopped while it wrote
    Recorder("suite", argparse.Namespace(output=two), [], append=True)
    assert load_rows([two]) == tiny_run[1][:-1]
    assert "left out, the run was stopped" in capsys.readouterr().out
    two.write_text(json.dumps({**header, "schema": 1, **rows[0]}) + "\n")
    with pytest.raises(SystemExit, match=r"two\.jsonl has no header of schema 2"):
        load_rows([two])


@pytest.mark.parametrize("measurement", ["scaling", "growth", "overhead"])
def test_every_time_is_taken_in_every_mode(
    measurement: str, tiny_run: tuple[list[str], list[Row]]
) -> None:
    modes = [row["mode"] for row in tiny_run[1] if row["measurement"] == measurement]
    assert tuple(dict.fromkeys(modes)) == ALL_MODES


def test_growth_and_scaling_rows_say_what_they_compare(
    tiny_run: tuple[list[str], list[Row]],
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
    with pytest.raises(SystemExit, match="--device cuda measures latency alone"):
        main(["operator", "tiny", "--device", "cuda", "--measure", "memory"])


def test_missing_native_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "missing", lambda device: "not built")
    with pytest.raises(SystemExit, match=r"not built; without it: --variants reference"):
        main(["operator", "tiny"])


def test_report_replaces_the_results_of_the_page(
    tiny_run: tuple[list[str], list[Row]], tmp_path: Path
) -> None:
    results, page = tiny_run[0][-1], tmp_path / "page.md"
    page.write_text((ROOT / "benchmarks/results/RESULTS.md").read_text())
    assert main(["report", results, "--docs", str(page)]) == 0
    once = page.read_text()
    assert main(["report", results, "--docs", str(page)]) == 0
    assert page.read_text() == once
    before = (ROOT / "benchmarks/results/RESULTS.md").read_text().split(report.BEGIN)[0]
    assert once.startswith(before)
    assert "| forward: time [quartiles] | forward: times" in _squeezed(once)
    assert "| backward: time [quartiles] | backward: times" in _squeezed(once)
    bandwidth = [row for row in tiny_run[1] if row["measurement"] == "bandwidth"]
    for row in bandwidth:
        assert f"{row['ceiling']['DRAM'] / 1e9:.0f} GB/s (" in once.partition("forward: DRAM")[2]
    composite = next(row for row in tiny_run[1] if row["variant"] == "composite")
    assert f"{composite['ratio']['median']:.2f}x" in once
    assert composite["commit"] is None or composite["commit"] in once


def _on(cpu: str, rows: list[Row]) -> list[Row]:
    return [{**row, "cpu": cpu} for row in rows]


def _squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


def test_rows_of_different_machines_share_no_table(
    tiny_run: tuple[list[str], list[Row]],
) -> None:
    latency = [row for row in tiny_run[1] if row["measurement"] == "latency"]
    scaling = [row for row in tiny_run[1] if row["measurement"] == "scaling"]
    again = [row for row in latency if row["variant"] == OURS]
    rows = [*_on("One CPU", latency), *_on("Other CPU", scaling), *_on("Other CPU", again)]
    shown = _squeezed(tables.tables(rows))
    about = f"{latency[0]['cores']} cores, {latency[0]['simd']}"
    both = shown.partition("### Latency")[2].partition("###")[0]
    one, other = both.partition(f"On Other CPU, {about}:")[::2]
    assert one.strip().startswith(f"On One CPU, {about}:")
    # What was measured again on another machine is listed under both.
    assert (one.count(f"| {OURS} |"), other.count(f"| {OURS} |")) == (1, 1)
    assert (one.count("| composite |"), other.count("| composite |")) == (1, 0)
    alone = shown.partition("### Thread scaling")[2].partition("###")[0]
    assert f"On Other CPU, {about}:" in alone
    assert "One CPU" not in alone


def test_every_run_and_every_verdict_names_its_machine(
    tiny_run: tuple[list[str], list[Row]],
) -> None:
    overhead = [row for row in tiny_run[1] if row["measurement"] == "overhead"]
    mine = [{**row, "subject": "native", "variant": "native", "threads": 2} for row in overhead]
    theirs = [{**row, "command": "python -m benchmarks other --output b.jsonl"} for row in mine]
    shown = _squeezed(tables.tables([*_on("One CPU", mine), *_on("Other CPU", theirs)]))
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
        _assert_schema(row)
        assert not row["commit"].endswith("-dirty")
    page, copy = ROOT / "benchmarks/results/RESULTS.md", tmp_path / "page.md"
    copy.write_text(page.read_text())
    drawn = ["--parts-picture", str(tmp_path / "parts.png")]
    assert main(["report", *map(str, results), "--docs", str(copy), *drawn]) == 0
    assert copy.read_text() == page.read_text()


def test_environment_names_commit_and_command() -> None:
    about = environment.describe(["operator", "--output", "a b.jsonl"])
    assert about["command"] == "python -m benchmarks operator --output 'a b.jsonl'"
    assert about["commit"] is None or re.fullmatch(r"[0-9a-f]{12,}(-dirty)?", about["commit"])


def test_docs_name_every_workload_and_variant() -> None:
    page = (ROOT / "benchmarks/README.md").read_text()
    missing = [name for name in (*WORKLOADS, *registry.IMPLEMENTATIONS) if f"`{name}`" not in page]
    assert missing == []
