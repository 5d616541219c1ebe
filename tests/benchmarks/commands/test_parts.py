"""The command `parts`: its rows, and the picture of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.costs import cpu_parts
from benchmarks.measure import compiled
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import Row
from benchmarks.report.plots import draw_parts
from stdeform import _native
from tests.benchmarks.commands.test_report import ROOT, _assert_schema


def test_rows_are_recorded_shown_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if compiled.compiler() is None or _native.missing("cpu"):
        pytest.skip("needs a C++ compiler and the native core")
    assert _native._C
    core = tmp_path / "core.so"  # in place of one with line tables
    shutil.copy(_native._C.__file__, core)
    monkeypatch.setattr(cpu_parts, "core_with_lines", lambda: core)
    output = tmp_path / "rows.jsonl"
    arguments = ["parts", "tiny", "--dtypes", "float32", "--seconds", "1", "--rounds", "5"]
    assert main([*arguments, "--threads", "1", "--output", str(output)]) == 0
    rows, shown = load_rows([output]), capsys.readouterr().out
    for row in rows:
        _assert_schema(row)
    measured = [(row["measurement"], row["mode"]) for row in rows]
    assert measured == [("bandwidth", "forward"), ("parts", "forward"), ("parts", "backward")]
    for row in rows[1:]:
        assert sum(row["parts"].values()) == pytest.approx(1)
        # Without line tables no more is known of the kernels.
        assert {"other", "around"} <= set(row["parts"]) <= {"other", "around", "threads"}
        assert f"other {row['parts']['other']:.0%}" in shown
    page, picture = tmp_path / "page.md", tmp_path / "parts.png"
    page.write_text((ROOT / "benchmarks/results/RESULTS.md").read_text())
    drawn = ["--docs", str(page), "--parts-picture", str(picture)]
    assert main(["report", str(output), *drawn]) == 0
    assert "Time by part of the CPU kernels" in page.read_text()
    assert b"PNG" in picture.read_bytes()


def test_the_picture_shows_the_rows_of_the_last_machine(tmp_path: Path) -> None:
    about = {"suite": "parts", "device": "cpu", "cores": 2, "simd": "avx512", "threads": 2}

    def rows(cpu: str, label: str, gather: float) -> list[Row]:
        common = {**about, "cpu": cpu, "label": label}
        ceiling = {"same rows": 4e11, "L1": 8e11, "L2": None}
        return [
            {**common, "measurement": "bandwidth", "mode": "forward", "ceiling": ceiling,
             "bytes_per_second": {"median": 1e11}},
            *(
                {**common, "measurement": "parts", "mode": mode, "seconds": {"median": 0.02},
                 "parts": {"gather": gather, "around": 1 - gather}}
                for mode in ("forward", "backward")
            ),
        ]  # fmt: skip

    def draw(name: str, *parts: list[Row]) -> bytes:
        draw_parts([row for part in parts for row in part], tmp_path / name)
        return (tmp_path / name).read_bytes()

    one = draw("one.png", rows("One", "a", 0.5))
    assert draw("both.png", rows("Other", "a", 0.9), rows("One", "a", 0.5)) == one
    assert draw("again.png", rows("One", "a", 0.9), rows("One", "a", 0.5)) == one
    assert draw("less.png", rows("One", "a", 0.3)) != one
    assert draw("two.png", rows("One", "a", 0.5), rows("One", "b", 0.5)) != one
    colors = {color for _, color in Image.open(tmp_path / "one.png").convert("RGB").getcolors()}
    assert len(colors) > 5


def test_the_native_kernel_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "missing", lambda device: "not built")
    with pytest.raises(SystemExit, match="parts are those of the native kernel: not built"):
        main(["parts", "tiny"])
