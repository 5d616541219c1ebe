"""The benchmark command: workloads, answers, times, memory, traffic, rows, bars, report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import time
from pathlib import Path

import pytest
import torch

from benchmarks import (
    bars,
    ceiling,
    compiled,
    environment,
    gpu_rows,
    memory,
    report,
    timing,
    traffic,
    variants,
)
from benchmarks.__main__ import main
from benchmarks.answers import WrongAnswerError, check_answers
from benchmarks.prepared import MODES, Prepared, Variant
from benchmarks.variants import VARIANTS
from benchmarks.workloads import WORKLOADS, Workload, make_inputs
from stdeform import _native
from tests.gpu_results import assert_gpu_schema

ROOT = Path(__file__).parents[1]
TINY = WORKLOADS["tiny"]
OURS = "reference" if _native.missing("cpu") else "native"

# -- workloads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cells", "queries", "heads", "head_dim", "levels", "points"),
    [
        ("paper-encoder", 6120, 6120, 8, 48, 1, 32),
        ("paper-encoder-large", 24480, 24480, 8, 48, 1, 32),
        ("paper-decoder", 6120, 360, 8, 48, 1, 32),
        ("detr-encoder", 22223, 22223, 8, 32, 4, 4),
        ("four-elements", 1, 1, 1, 4, 1, 1),
    ],
)
def test_workload_has_its_published_sizes(
    name: str, cells: int, queries: int, heads: int, head_dim: int, levels: int, points: int
) -> None:
    workload = WORKLOADS[name]
    assert (workload.num_cells, workload.num_queries) == (cells, queries)
    assert (workload.num_heads, workload.head_dim) == (heads, head_dim)
    assert (len(workload.spatial_shapes), workload.num_points) == (levels, points)
    assert (workload.offset_spread, workload.batch, workload.dtype) == (2.0, 1, "float32")


def test_inputs_have_the_operators_shapes_and_dtypes() -> None:
    workload = dataclasses.replace(TINY, batch=2, dtype="bfloat16", num_object_queries=7)
    inputs = make_inputs(workload, seed=0)
    assert [list(tensor.shape) for tensor in inputs] == [
        [2, 120, 2, 16],
        [2, 7, 1, 3],
        [2, 7, 2, 1, 4, 3],
        [2, 7, 2, 1, 4],
        [2, 7, 32],
    ]
    half, real = torch.bfloat16, torch.float32
    assert [tensor.dtype for tensor in inputs] == [half, real, real, real, half]


def test_encoder_queries_sample_around_their_own_cell() -> None:
    workload = dataclasses.replace(TINY, offset_spread=0.5)
    inputs = make_inputs(workload, seed=0)
    cell = next(i for i, at in enumerate(itertools.product(range(4), range(6), range(5))) if
                at == (2, 4, 1))  # fmt: skip
    expected = torch.tensor([1.5 / 5, 4.5 / 6, 2.5 / 4])
    torch.testing.assert_close(inputs.reference_points[0, cell, 0], expected)
    assert inputs.sampling_offsets.std() == pytest.approx(0.5, rel=0.05)


def test_samples_keep_off_kinks() -> None:
    workload = WORKLOADS["paper-decoder"]
    inputs = make_inputs(workload, seed=0)
    sizes = torch.tensor(workload.spatial_shapes[0][::-1])
    points = inputs.reference_points[:, :, None, :, None].double()
    cells = points * sizes - 0.5 + inputs.sampling_offsets
    assert (cells - cells.round()).abs().min() > 0.9e-3


def test_seed_decides_the_inputs() -> None:
    first, again, other = (make_inputs(TINY, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.value, other.value)


def test_doubled_workload_has_twice_the_cells() -> None:
    for workload in (TINY, WORKLOADS["detr-encoder"]):
        assert workload.doubled().num_cells == 2 * workload.num_cells


def test_shrunk_workload_keeps_what_decides_the_code_path() -> None:
    workload = WORKLOADS["detr-encoder"]
    shrunk = workload.shrunk()
    assert shrunk.num_cells == 4 * 4
    kept = ("num_heads", "head_dim", "num_points", "dtype")
    assert all(getattr(shrunk, name) == getattr(workload, name) for name in kept)


# -- variants and their answers ----------------------------------------------------------------


def test_every_variant_does_the_same_work() -> None:
    """Gradients of everything differentiable, from one dense gradient of the result."""
    for name in (OURS, "composite"):
        prepared = VARIANTS[name].prepare(TINY, 0)
        out, *grads = prepared.forward_backward()
        assert [grad.shape for grad in grads] == [tensor.shape for tensor in prepared.inputs]
        assert out.shape == prepared.grad_out.shape
        assert not prepared.forward().requires_grad


def test_dense_attention_sees_the_same_tokens() -> None:
    decoder = dataclasses.replace(TINY, num_object_queries=7, batch=2)
    query, key, value = VARIANTS["dense"].prepare(decoder, 0).inputs
    assert list(query.shape) == [2, 2, 7, 16]
    assert list(key.shape) == list(value.shape) == [2, 2, 120, 16]
    assert all(tensor.is_contiguous() for tensor in (query, key, value))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_right_answers_pass(dtype: str) -> None:
    workload = dataclasses.replace(TINY, dtype=dtype)
    names = (OURS, "reference", "composite", "dense")
    check_answers(workload, {name: VARIANTS[name].prepare(workload, 0) for name in names})


def _shift_points(prepared: Prepared) -> Prepared:
    """Half a cell to the right: align_corners mixed up."""

    def attend(value, points, offsets, logits):
        return prepared.function(value, points, offsets + 0.5, logits)

    return prepared._replace(function=attend)


def _drop_last_query(prepared: Prepared) -> Prepared:
    def attend(*inputs):
        out = prepared.function(*inputs)
        return torch.cat([out[:, :-1], torch.zeros_like(out[:, -1:])], 1)

    return prepared._replace(function=attend)


def _lose_value_gradient_of_one_cell(prepared: Prepared) -> Prepared:
    def attend(value, *others):
        kept = torch.cat([value[:, :57], value[:, 57:58].detach(), value[:, 58:]], 1)
        return prepared.function(kept, *others)

    return prepared._replace(function=attend)


def _wrong_only_without_gradients(prepared: Prepared) -> Prepared:
    def attend(*inputs):
        out = prepared.function(*inputs)
        return out if torch.is_grad_enabled() else 1.01 * out

    return prepared._replace(function=attend)


def _forget_the_scale(prepared: Prepared) -> Prepared:
    def attend(query, key, value):
        return prepared.function(query, key, value, scale=1.0)

    return prepared._replace(function=attend)


BREAKAGES = [
    (OURS, _shift_points),
    (OURS, _drop_last_query),
    (OURS, _lose_value_gradient_of_one_cell),
    (OURS, _wrong_only_without_gradients),
    ("composite", _shift_points),
    ("dense", _forget_the_scale),
]


@pytest.fixture(params=BREAKAGES, ids=lambda case: f"{case[0]}{case[1].__name__}")
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a variant that now computes something else."""
    name, breakage = request.param
    right = VARIANTS[name]

    def prepare(workload: Workload, seed: int) -> Prepared:
        return breakage(right.prepare(workload, seed))

    monkeypatch.setitem(VARIANTS, name, Variant(name, right.is_operator, prepare))
    return name


def test_wrong_answer_is_named(broken: str) -> None:
    prepared = {name: VARIANTS[name].prepare(TINY, 0) for name in (OURS, "composite", "dense")}
    with pytest.raises(WrongAnswerError, match=rf"^{broken}: "):
        check_answers(TINY, prepared)


def test_wrong_answer_stops_the_command_before_any_time_is_taken(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.jsonl"
    chosen = ["--variants", OURS, "composite", "dense", "--measure", "latency"]
    status = main(["operator", "tiny", *chosen, "--rounds", "1", "--output", str(output)])
    assert status == 1
    assert output.read_text() == ""
    assert f"nothing was timed: {broken}: " in capsys.readouterr().err


# -- times -------------------------------------------------------------------------------------


def test_spread_is_median_and_quartiles() -> None:
    assert timing.spread([5, 1, 4, 2, 3]) == timing.Spread(median=3, q1=2, q3=4)
    assert timing.spread([7]) == timing.Spread(7, 7, 7)


def test_ratios_are_taken_per_round() -> None:
    """A machine that slows down between rounds changes the times, not the ratio."""
    ours, theirs = [1.0, 10.0, 2.0], [3.0, 30.0, 6.0]
    assert timing.ratios(theirs, ours) == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        timing.ratios(theirs, ours[:2])


def test_rounds_interleave_and_rotate() -> None:
    order: list[str] = []

    def task(name: str) -> timing.Task:
        def run() -> None:
            order.append(name)
            time.sleep(0.11)  # longer than a block: one call each

        return timing.Task(name, run, threads=1)

    samples = timing.interleave([task("a"), task("b")], budget_seconds=0, rounds=2)
    assert "".join(order)[-4:] == "abba"
    assert {name: len(own) for name, own in samples.items()} == {"a": 2, "b": 2}
    assert all(0.1 < seconds < 0.5 for own in samples.values() for seconds in own)


def test_short_calls_are_averaged_over_a_block() -> None:
    calls = itertools.count()
    tasks = [timing.Task("short", lambda: next(calls), threads=1)]
    samples = timing.interleave(tasks, budget_seconds=0, rounds=1)
    assert next(calls) > 1000
    assert 0 < samples["short"][0] < 1e-4


def test_threads_are_set_for_the_task_and_put_back() -> None:
    seen = []
    before = torch.get_num_threads()
    run = timing.Task("one", lambda: seen.append(torch.get_num_threads()), threads=before + 1)
    timing.interleave([run], budget_seconds=0, rounds=1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


# -- memory ------------------------------------------------------------------------------------

BLOCK = 64 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("can_reset", [True, False], ids=["VmHWM", "sampled"])
def test_peak_sees_memory_that_is_freed_again(
    can_reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_reset:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)

    def call() -> None:
        block = bytearray(b"x" * 1) * BLOCK
        time.sleep(0.05)
        del block

    peak = memory.peak_of(call)
    assert peak.method in (("VmHWM", "sampled") if can_reset else ("sampled",))
    assert peak.extra_bytes == pytest.approx(BLOCK, rel=0.1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_in_a_fresh_process_holds_result_and_gradients() -> None:
    workload = dataclasses.replace(TINY, batch=64, num_points=16)
    prepared = VARIANTS["composite"].prepare(workload, 0)
    results = (prepared.grad_out, *prepared.inputs)
    floor = sum(tensor.numel() * tensor.element_size() for tensor in results)
    mode = "forward+backward"
    peak = memory.measure_peak(workload, "composite", mode, threads=1, seed=0)
    assert floor < peak.extra_bytes < 20 * floor


# -- traffic and ceiling -----------------------------------------------------------------------


def _rows_one_by_one(workload: Workload, inputs, head: int) -> list[int]:
    """The corner rows of a head, straight from the definition."""
    rows = []
    for query in range(workload.num_queries):
        start = 0
        for level, shape in enumerate(workload.spatial_shapes):
            for point in range(workload.num_points):
                reference = inputs.reference_points[0, query, level].tolist()
                offset = inputs.sampling_offsets[0, query, head, level, point].tolist()
                sizes = shape[::-1]
                lows = [
                    math.floor((r + o / n) * n - 0.5)
                    for r, o, n in zip(reference, offset, sizes, strict=True)
                ]
                for steps in itertools.product((0, 1), repeat=len(shape)):
                    cell = [low + step for low, step in zip(lows, steps, strict=True)]
                    if all(0 <= at < size for at, size in zip(cell, sizes, strict=True)):
                        row = 0
                        for at, size in zip(cell[::-1], shape, strict=True):
                            row = row * size + at
                        rows.append(start + row)
            start += math.prod(shape)
    return rows


@pytest.mark.parametrize(
    "shapes", [((4, 6, 5),), ((6, 7), (3, 4))], ids=["video", "two image levels"]
)
def test_traffic_counts_the_corners_that_exist(shapes: tuple[tuple[int, ...], ...]) -> None:
    workload = dataclasses.replace(TINY, spatial_shapes=shapes)
    inputs = make_inputs(workload, seed=0)
    count = 0
    for head in range(workload.num_heads):
        expected = _rows_one_by_one(workload, inputs, head)
        assert traffic.corner_rows(workload, inputs, 0, head).tolist() == expected
        count += len(expected)
    assert traffic.corner_bytes(workload, inputs) == count * workload.head_dim * 4


@pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")
def test_ceiling_reads_rows_of_every_usual_size() -> None:
    rows = torch.randint(50, (1 << 16,))
    for head_dim, element in itertools.product((16, 32, 48, 64, 96, 128), (2, 4)):
        speed = ceiling.rows_bandwidth(rows, 50, head_dim * element, threads=1)
        assert speed is not None
        assert 1e8 < speed < 1e13
    assert ceiling.rows_bandwidth(rows, 50, 20, threads=1) is None


# -- command, rows, bars, report ---------------------------------------------------------------

COMMON = {
    "schema", "suite", "device", "cpu", "cores", "simd", "system", "python", "torch", "stdeform",
    "commit", "command", "load_average_at_start", "time",
    "measurement", "workload", "label", "subject", "threads", "load_average", "variant", "mode",
}  # fmt: skip
TIMED = COMMON | {"seconds", "rounds", "ratio"}
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
    "exponent": FITTED | {"axis", "exponent", "counted", "sizes"},
    "crossover": FITTED | {"axis", "cells", "smallest"},
    "model": TIMED - {"workload"} | {"frames", "pixels"},
    "memory of models": COMMON - {"workload"}
    | {"extra_bytes", "method", "ratio", "frames", "pixels"},
    "memory by size": COMMON | {"cells", "extra_bytes", "method", "ratio"},
    **dict.fromkeys(
        ("sweep of num_points", "sweep of head_dim", "sweep of num_object_queries"),
        TIMED | {"cells", "multiply_adds", "operand_bytes", "size"},
    ),
}


def _assert_schema(row: bars.Row) -> None:
    assert set(row) == FIELDS[row["measurement"]]
    assert row["schema"] == 1
    assert row["mode"] in MODES
    assert row["command"].startswith(f"python -m benchmarks {row['suite']} ")
    assert row["threads"] >= 1
    if "rounds" in row:
        expected = dataclasses.asdict(timing.spread(row["rounds"]))
        assert row["seconds"] == pytest.approx(expected)
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
    return arguments, [json.loads(text) for text in output.read_text().splitlines()]


def test_rows_say_what_where_and_how(tiny_run: tuple[list[str], list[bars.Row]]) -> None:
    arguments, rows = tiny_run
    for row in rows:
        _assert_schema(row)
        assert row["command"].split()[3:] == arguments
        assert row["torch"] == torch.__version__
        assert row["subject"] == OURS
    timed = {(row["measurement"], row["variant"], row["mode"]) for row in rows}
    expected = itertools.product(["latency"], [OURS, "composite", "dense"], MODES)
    assert set(expected) < timed


def test_ratios_in_the_rows_are_those_of_their_rounds(
    tiny_run: tuple[list[str], list[bars.Row]],
) -> None:
    rows = [row for row in tiny_run[1] if row["measurement"] == "latency"]
    for mode in MODES:
        ours, *others = (row for row in rows if row["mode"] == mode)
        for row in others:
            pairs = zip(row["rounds"], ours["rounds"], strict=True)
            middle = sorted(theirs / own for theirs, own in pairs)[1]
            assert row["ratio"]["median"] == pytest.approx(middle)


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


def test_the_last_row_counts() -> None:
    bar = bars.BARS[0]
    verdict = bars.judge([_row(bar, 1.0), _row(bar, 100.0)])[0]
    assert (verdict.value, verdict.word) == (100.0, "pass")


def test_report_replaces_the_results_of_the_page(
    tiny_run: tuple[list[str], list[bars.Row]], tmp_path: Path
) -> None:
    results, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    results.write_text("".join(json.dumps(row) + "\n" for row in tiny_run[1]))
    page.write_text((ROOT / "docs/benchmarks.md").read_text())
    assert main(["report", str(results), "--docs", str(page)]) == 0
    once = page.read_text()
    assert main(["report", str(results), "--docs", str(page)]) == 0
    assert page.read_text() == once
    before = (ROOT / "docs/benchmarks.md").read_text().split(report.BEGIN)[0]
    assert once.startswith(before)
    composite = next(row for row in tiny_run[1] if row["variant"] == "composite")
    assert f"{composite['ratio']['median']:.2f}x" in once
    assert composite["commit"] is None or composite["commit"] in once


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
    for path in results:
        for text in path.read_text().splitlines():
            row = json.loads(text)
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
    missing = [name for name in (*WORKLOADS, *variants.VARIANTS) if f"`{name}`" not in page]
    assert missing == []
