"""Comparing configs: the curves that are read, equal time, and the program on tiny runs."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from pathlib import Path

import compare_convergence
import pytest

from defvis.comparisons.convergence import Curve, Variant, draw, interpolate, read_curve, to_table
from defvis.training import profiling
from tests.examples.support import TINY_RUN, as_words, program

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = ROOT / "docs/internals/experiments.md"


def curve(*values: float) -> Curve:
    points = [(100 * (i + 1), value) for i, value in enumerate(values)]
    return Curve(dict.fromkeys(("AP", "AP50", "AP75"), points), [(1, 2.0), (2, 1.0)])


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0.0), (50, 0.1), (100, 0.2), (150, 0.3), (200, 0.4), (999, 0.4)]
)
def test_interpolation(at: float, value: float) -> None:
    assert interpolate([(100, 0.2), (200, 0.4)], at) == pytest.approx(value)


def test_equal_time_is_when_the_fastest_ends() -> None:
    # 200 steps of 0.3 s are one minute, in which the slow one takes 100 steps.
    quick = Variant(10, [0.2, 0.3, 0.9], {0: curve(0.1, 0.2), 1: curve(0.3, 0.4)})
    slow = Variant(20, [0.6], {0: curve(0.5, 0.6)})
    assert quick.total_minutes == 1
    assert slow.at("AP", 1) == [0.5]
    header, _, first, second = to_table({"quick": quick, "slow": slow}).splitlines()
    assert "AP after 1.0 min" in header
    assert first.startswith("| quick | 10 | 0.300 | 2 | 200 | .300 [.200, .400] | ")
    assert second.endswith("| .600 | .600 | .600 | .500 | .500 | .500 |")


def recorded(name: str) -> dict[str, Variant]:
    content = json.loads((ROOT / f"examples/results/{name}.json").read_text())
    return {
        variant: Variant(
            fields["parameters"],
            fields["seconds"],
            {int(seed): Curve(**run) for seed, run in fields["runs"].items()},
        )
        for variant, fields in content.items()
    }


def spread(values: list[float], percent: bool) -> str:
    """The mean, and in brackets the range where there are several."""

    def one(value: float) -> str:
        return f"{value:.1f}" if percent else f"{value:.3f}".removeprefix("0")

    text = one(statistics.mean(values)) + " %" * percent
    return text if len(values) == 1 else f"{text} [{one(min(values))}, {one(max(values))}]"


def test_rows_by_level_follow_from_the_recorded_figures() -> None:
    """AP, a fraction, and what identity switches cost, in percent; one list of seeds a cell."""
    text = EXPERIMENTS.read_text()
    for rows in json.loads((ROOT / "examples/results/levels.json").read_text()).values():
        for label, cells in rows.items():
            shown = " | ".join(spread(values, values[0] > 1) for values in cells)
            assert f"| {label} | {shown} |" in text


def test_figures_of_the_default_run_are_the_recorded_ones() -> None:
    text = (ROOT / "docs/guide/training.md").read_text() + EXPERIMENTS.read_text()
    recorded_runs = json.loads((ROOT / "examples/results/digits.json").read_text())

    def of(key: str, level: str, name: str) -> list[float]:
        runs = recorded_runs[key]["runs"].values()
        return [run["validation"][level][name] for run in runs]

    def value(number: float) -> str:
        return f"{number:.3f}".removeprefix("0")

    levels = ("EM", "M", "E", "H")
    for level in levels:
        cells = []
        for name in ("AP", "AP50"):
            mean, *each = map(value, (statistics.mean(found := of("default", level, name)), *found))
            cells.append(f"**{mean}** ({', '.join(each)})")
        assert f"| {' | '.join(cells)} | " in text, level
    for times, key in (
        ("not at all", "default, cells not shared"),
        *((str(times), f"default, cells shared {times}x") for times in (1, 2, 6)),
        ("4 (default)", "default"),
    ):
        cells = [value(statistics.mean(of(key, level, "AP"))) for level in levels]
        lost = statistics.mean(of(key, "M", "lost to identity switches, %"))
        assert f"| {times} | {' | '.join(cells)} | " in text, times
        assert f" | {lost:.1f} % | " in text, times


def test_tables_in_the_docs_follow_from_the_recorded_figures() -> None:
    text = EXPERIMENTS.read_text()

    def value(number: float) -> str:
        return f"{number:.3f}".removeprefix("0")

    def last(variant: Variant) -> str:
        return " | ".join(value(variant.at(name, 99)[0]) for name in ("AP", "AP50", "AP75"))

    for points, variant in recorded("points").items():
        label = {"deformable": "12 (default)"}.get(points, points.removeprefix("K"))
        assert f"| {label} | {variant.step_seconds:.3f} | {last(variant)} |" in text
    for name, variant in recorded("rates").items():
        kind, rate = name.split("-", 1)
        curve = " | ".join(value(ap) for _, ap in variant.runs[0].figures["AP"])
        default = " (default)" if name == "d-1e-3" else ""
        kind = {"d": "deformable"}.get(kind, kind)
        assert f"| {kind} | {rate}{default} | {curve} |" in text


def test_the_tables_of_attention_follow_from_the_recorded_figures() -> None:
    """What each kind has after every validation, and how many steps each needs for the same AP."""
    text = EXPERIMENTS.read_text()
    attention = recorded("attention")
    means = {}
    for line, (name, variant) in zip(
        to_table(attention).splitlines()[2:], attention.items(), strict=True
    ):
        _, parameters, seconds, _, _, *figures = line.strip("| ").split(" | ")[:8]
        assert f"| {name} | {parameters} | {seconds} | {' | '.join(figures)} |" in text
        runs = [run.figures["AP"] for run in variant.runs.values()]
        means[name] = [
            (at[0][0], statistics.mean(ap for _, ap in at)) for at in zip(*runs, strict=True)
        ]
        values = " | ".join(f"{ap:.3f}".removeprefix("0") for _, ap in means[name])
        assert f"| {name} | {values} |" in text

    def steps_to(name: str, ap: float) -> float:
        """The first ones, between two validations."""
        after = next(n for n, (_, reached) in enumerate(means[name]) if reached >= ap)
        return interpolate([(reached, step) for step, reached in means[name][: after + 1]], ap)

    end = means["dense"][-1][1]
    wanted = [ap for step, ap in means["dense"] if 3000 <= step <= 7000] + [end]
    dense, deformable = ([steps_to(kind, ap) for ap in wanted] for kind in ("dense", "deformable"))
    ratios = [theirs / ours for theirs, ours in zip(dense, deformable, strict=True)]
    for cells in (
        *([f"{steps:,.0f}" for steps in row] for row in (dense, deformable)),
        [f"{ratio:.1f}" for ratio in ratios],
    ):
        assert f"| {' | '.join(cells)} |" in text
    assert f"**{deformable[-1] / dense[-1]:.2f} of the steps**" in text
    ahead = f"{means['deformable'][-1][1] - end:.3f}".removeprefix("0")
    assert f"ends {ahead} higher" in " ".join(text.split())
    for page in ("README.md", "docs/internals/paper.md"):
        words = " ".join((ROOT / page).read_text().split())
        assert f"{deformable[-1]:,.0f}" in words, page
        assert f"after {dense[-1]:,.0f}" in words, page


def test_the_tables_of_mask_heads_follow_from_the_recorded_figures() -> None:
    text = EXPERIMENTS.read_text()
    masks, dynamic = recorded("masks"), recorded("time")["volume"]
    for weights, variant in masks.items():
        if weights.startswith("focal"):
            words = re.fullmatch(r"focal (\d+), dice (\d)(, begins at \.50)?", weights)
            assert words
            (run,) = variant.runs.values()
            values = " | ".join(f"{ap:.3f}".removeprefix("0") for _, ap in run.figures["AP"])
            begins = ".50" if words[3] else ".12"
            assert f"| {words[1]}, {words[2]} | {begins} | {values} |" in text
    for name, timed, trained in (
        ("dynamic (default)", masks["dynamic"], dynamic),
        ("VisTR's", masks["VisTR's"], masks["VisTR's"]),
    ):
        steps = max(run.figures["AP"][-1][0] for run in trained.runs.values())
        ends = [
            spread([run.figures[figure][-1][1] for run in trained.runs.values()], percent=False)
            for figure in ("AP", "AP50", "AP75")
        ]
        assert f"| {name} | {timed.step_seconds:.3f} | {steps:,} | {' | '.join(ends)} |" in text


def test_the_table_of_the_larger_volume_follows_from_the_recorded_figures() -> None:
    text = EXPERIMENTS.read_text()
    for name, variant in recorded("larger").items():
        (run,) = variant.runs.values()
        values = " | ".join(f"{ap:.3f}".removeprefix("0") for _, ap in run.figures["AP"])
        assert f"| {name} | {variant.step_seconds:.2f} | {values} |" in text


def test_the_table_of_encoder_and_decoder_follows_from_the_recorded_figures() -> None:
    text = EXPERIMENTS.read_text()
    parts, rates = recorded("parts"), recorded("rates")
    for encoder, decoder, variant in (
        ("dense", "dense", rates["dense-1e-3"]),
        ("deformable", "dense", parts["encoder"]),
        ("dense", "deformable", parts["decoder"]),
        ("deformable", "deformable", rates["d-1e-3"]),
    ):
        runs = [run.figures["AP"] for run in variant.runs.values()]
        means = [statistics.mean(ap for _, ap in at) for at in zip(*runs, strict=True)]
        cells = [f"{mean:.3f}".removeprefix("0") for mean in means[:-1]]
        cells.append(spread([run[-1][1] for run in runs], percent=False))
        assert f"| {encoder} | {decoder} | {len(runs)} | {' | '.join(cells)} |" in text


def test_warm_up_is_that_of_the_profile() -> None:
    assert compare_convergence.WARM_UP == profiling.WARM_UP


def test_picture(tmp_path: Path) -> None:
    draw({"one": Variant(1, [0.1], {0: curve(0.1, 0.2)})}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_other_videos_are_refused(tmp_path: Path) -> None:
    rows = [
        {"kind": "val", "stage": "joint", "step": step, "videos": videos, "AP": 0.1}
        for step, videos in ((1, 4), (2, 6))
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="different numbers of videos"):
        read_curve(tmp_path)


def test_program(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *("--data", str(digits), "--out", str(tmp_path), "--steps", "4", "--backbone-steps", "1"),
        *("--eval-every", "2", "--rounds", "1", "--timing-steps", "1"),
        *("--jobs", "2"),
        *("--variant", "K4", "model.num_points=4", "--variant", "K2", "model.num_points=2"),
        *as_words(TINY_RUN),
    ]
    program("compare_convergence")(words)
    printed = capsys.readouterr().out
    assert "K4-0: done" in printed
    assert (tmp_path / "comparison.md").read_text() in printed
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [step for step, _ in found["K2"]["runs"]["0"]["figures"]["AP"]] == [2, 4]
    assert found["K2"]["parameters"] < found["K4"]["parameters"]
    # What is there is not trained again, and what has other settings is left alone.
    program("compare_convergence")(words)
    assert "begins" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"K4-0 holds .*: optim\.learning_rate is 0\.001 there"):
        program("compare_convergence")([*words, "--set", "optim.learning_rate=0.5"])
    renamed = tmp_path / "renamed"
    shutil.copytree(digits, renamed)
    for split in ("train", "val"):
        file = renamed / split / "instances.json"
        file.write_text(file.read_text().replace('"name": "7"', '"name": "seal"'))
    with pytest.raises(SystemExit, match=r"other categories: class 7 is '7' .* 'seal'"):
        program("compare_convergence")([*words, "--data", str(renamed)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds: must be a whole number of at least 1, got 0"),
        (["--steps", "5", "--timing-steps", "4"], "must be at most --steps - 2, 3, got 4"),
        (["--seeds", "1", "1"], "must differ"),
        (["--seeds", "-1"], "seed must be at least 0"),
        (["--backbone-steps", "-1"], "backbone_stage.steps must be at least 0"),
        (["--variant", "../up", "seed=1"], "is part of a folder's name, got '../up'"),
        (["--set", "model.num_heads=5"], "must be divisible by num_heads, 5"),
        (["--variant", "a", "--variant", "a", "seed=1"], "must differ"),
        (["--variant", "odd", "model.wings=2"], "no field 'model.wings'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        program("compare_convergence")(["--data", str(tmp_path), "--out", str(tmp_path), *words])
    assert message in capsys.readouterr().err
