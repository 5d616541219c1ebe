"""`python -m benchmarks export`: exported models are checked, timed and shown."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="it comes with the extra of tests")
pytest.importorskip("onnxscript", reason="it comes with the extra of tests")
pytest.importorskip("onnxruntime", reason="it comes with the extra of tests")
pytest.importorskip("openvino", reason="it comes with the extra of tests")

from benchmarks.__main__ import main
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import Row
from benchmarks.report import tables
from benchmarks.report.targets import TARGETS
from benchmarks.subjects import exported, runtimes
from benchmarks.subjects.export_problems import PROBLEMS, QUICK
from stdeform import _native

ROOT = Path(__file__).parents[3]
QUICK_RUN = ["export", "--quick", "--problems", "video-encoder", "--threads", "1", "--rounds", "1"]
VARIANTS = [
    *("pytorch stdeform", "pytorch plain"),
    *("onnxruntime plain", "onnxruntime default", "onnxruntime grid_sample"),
    "openvino default",  # it has no GridSample of videos, and gathers are the default
]

pytestmark = pytest.mark.skipif(
    _native.missing("cpu") is not None, reason="there is no native kernel"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.jsonl"
    assert main([*QUICK_RUN, "--output", str(output)]) == 0
    rows = load_rows([output])
    shown = capsys.readouterr().out
    assert tables.tables(rows) in shown
    assert [(row["measurement"], row["variant"]) for row in rows] == [
        (measurement, variant)
        for measurement in ("memory of exported models", "exported model")
        for variant in VARIANTS
    ]
    label = "tiny, float32, 4 x 6 x 5 cells"
    for row in rows:
        assert (row["label"], row["subject"], row["mode"]) == (label, "plain", "forward")
        runtime, form = row["variant"].split()
        assert row["ratio"]["to"] == f"{runtime} plain"
        if runtime == "openvino":
            assert row["ratio"]["median"] is None
        elif form == "plain":
            assert row["ratio"]["median"] == 1
    for form in ("plain", "grid_sample"):
        assert f"-- {label}: openvino {form} is left out, " in shown
        assert "GridSample" in shown.partition(f"openvino {form} is left out, ")[2].split("\n")[0]
    _assert_graphs_are_shown(rows[len(VARIANTS) :], shown)


def _assert_graphs_are_shown(timed: list[Row], shown: str) -> None:
    heads = "forward: times the plain one | forward: wall-clock time | forward: nodes"
    assert heads in re.sub(" +", " ", shown)
    for row in timed:
        *_, nodes, size = tables._cells(row)
        if row["variant"].startswith("pytorch"):
            assert (row["nodes"], row["file_bytes"], nodes, size) == (None, None, "-", "-")
        else:
            assert nodes == str(row["nodes"])
            assert float(size.split()[0]) == pytest.approx(row["file_bytes"] / 2**20, abs=0.005)
    nodes_of = {row["variant"]: row["nodes"] for row in timed}
    assert nodes_of["onnxruntime default"] == nodes_of["openvino default"]
    assert nodes_of["onnxruntime default"] > nodes_of["onnxruntime grid_sample"] > 10


@pytest.mark.slow
def test_wrong_answers_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_wrongly(*arguments: Any) -> runtimes.Run:
        run = _load(*arguments)
        return lambda inputs: [each * np.float32(1 + 2e-5) for each in run(inputs)]

    monkeypatch.setattr(runtimes, "load", load_wrongly)
    assert main([*QUICK_RUN, "--runtimes", "onnxruntime"]) == 1
    out, error = capsys.readouterr()
    assert "tiny" not in out
    says = "output 0 of onnxruntime plain must be that of pytorch stdeform within 1e-05 of its norm"
    assert says in error


_load: Callable[..., runtimes.Run] = runtimes.load


@pytest.mark.slow
def test_a_detector_is_the_same_everywhere(tmp_path: Path) -> None:
    import onnx

    prepared = exported.prepare(QUICK["detector"], runtimes.RUNTIMES, 1, 0, tmp_path)
    assert prepared.refusals == {}
    names = [
        f"{name} {form}" for name in runtimes.RUNTIMES for form in ("plain", "default", "gather")
    ]
    assert [each.name for each in prepared.variants] == [
        "pytorch stdeform",
        "pytorch plain",
        *names,
    ]
    for variant in prepared.variants[2:]:
        assert variant.file is not None
        kinds = [node.op_type for node in onnx.load(variant.file).graph.node]
        assert variant.num_nodes == len(kinds)
        # Two layers with three levels each.
        assert kinds.count("GridSample") == (0 if variant.form == "gather" else 6)


@pytest.mark.parametrize("package", ["onnxscript", "openvino"])
def test_what_is_not_installed_is_told(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(SystemExit, match=f"{package} is not installed: pip install 'stdeform"):
        main(["export"])


def test_without_native_kernel_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "missing", lambda device: "not built")
    with pytest.raises(SystemExit, match="not built"):
        main(["export"])


def test_targets_are_of_problems_that_are_measured() -> None:
    limited = [target for target in TARGETS if target.measurement == "exported model"]
    assert len(limited) == 2
    assert {target.label for target in limited} == {PROBLEMS["detector"].label}


def test_docs_name_every_problem() -> None:
    page = (ROOT / "benchmarks/README.md").read_text()
    assert [name for name in PROBLEMS if f"`{name}`" not in page] == []
