"""What a stage of `gpu-check` has written is there, whenever it is stopped."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import record as records
from benchmarks.gpu.record import Record


def test_a_stage_reads_as_it_was_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "new", "first")
    record.write(began=True)
    record.write(row={"a": 1})
    record.note("a sentence")
    record.write(trying="something")
    assert record.read() == {
        "rows": [{"a": 1}],
        "notes": ["a sentence"],
        "tried": ["something"],
        "done": [],
        "passed": False,
        "seconds": None,
    }
    record.write(done="something")
    record.write(end={"passed": True, "seconds": 1.2})
    found = record.read()
    assert (found["done"], found["passed"], found["seconds"]) == (["something"], True, 1.2)


def test_a_stage_that_runs_again_replaces_what_it_had_said(tmp_path: Path) -> None:
    for name in ("first", "second"):
        record = Record(tmp_path, name)
        record.write(began=True)
        record.write(row={"of": name})
        record.write(end={"passed": True})
    Record(tmp_path, "first").write(began=True)
    stages = records.read(tmp_path / records.NAME)
    assert list(stages) == ["first", "second"]
    assert (stages["first"]["rows"], stages["first"]["passed"]) == ([], False)
    assert stages["second"]["rows"] == [{"of": "second"}]


def test_half_a_line_is_none(tmp_path: Path) -> None:
    record = Record(tmp_path, "first")
    record.write(row={"a": 1})
    with record.path.open("a") as file:
        file.write('{"stage": "first", "row": {"a"')
    assert record.read()["rows"] == [{"a": 1}]


def test_facts_are_those_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / records.NAME
    assert records.facts(records.read(path)) == {}
    Record(tmp_path, "environment").write(row={"device": "some"})
    assert records.facts(records.read(path)) == {"device": "some"}
