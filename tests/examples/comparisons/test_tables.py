"""The tables of the docs follow from the figures in examples/results/."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from pathlib import Path

from defvis.comparisons.convergence import Curve, Variant, interpolate, to_table

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = (ROOT / "docs/internals/experiments.md").read_text()
FIGURES = ("AP", "AP50", "AP75")
LEVELS = ("EM", "M", "E", "H")
LOST = "lost to identity switches, %"


def read(name: str) -> dict:
    return json.loads((ROOT / f"examples/results/{name}.json").read_text())


def recorded(name: str) -> dict[str, Variant]:
    return {
        variant: Variant(
            fields["parameters"],
            fields["seconds"],
            {int(seed): Curve(**run) for seed, run in fields["runs"].items()},
        )
        for variant, fields in read(name).items()
    }


def validated(key: str, level: str, name: str) -> list[float]:
    """A figure of the runs of `digits` with this key, by seed."""
    return [run["validation"][level][name] for run in read("digits")[key]["runs"].values()]


def value(number: float) -> str:
    return f"{number:.3f}".removeprefix("0")


def spread(values: list[float], percent: bool = False) -> str:
    """The mean, and in brackets the range where there are several."""

    def one(number: float) -> str:
        return f"{number:.1f}" if percent else value(number)

    text = one(statistics.mean(values)) + " %" * percent
    return text if len(values) == 1 else f"{text} [{one(min(values))}, {one(max(values))}]"


def means(variant: Variant) -> list[tuple[int, float]]:
    """(step, mean AP of the runs) of each validation."""
    runs = [run.figures["AP"] for run in variant.runs.values()]
    return [(at[0][0], statistics.mean(ap for _, ap in at)) for at in zip(*runs, strict=True)]


def curve(variant: Variant) -> list[str]:
    """The cells of `means`."""
    return [value(ap) for _, ap in means(variant)]


def ends(variant: Variant, figure: str) -> str:
    """The cell of the last validation of all runs."""
    return spread([run.figures[figure][-1][1] for run in variant.runs.values()])


def has_row(*cells: str) -> bool:
    """Whether a table of the experiments has these cells, next to each other."""
    return f"| {' | '.join(cells)} |" in EXPERIMENTS


def test_levels() -> None:
    """AP, a fraction, and what identity switches cost, in percent; one list of seeds a cell."""
    for rows in read("levels").values():
        for label, cells in rows.items():
            assert has_row(label, *(spread(values, values[0] > 1) for values in cells)), label


def test_the_default_run() -> None:
    training = (ROOT / "docs/guide/training.md").read_text()
    iou = ("frame IoU", "frame IoU, best of each frame")

    def mean(key: str, level: str, name: str) -> str:
        found = statistics.mean(validated(key, level, name))
        return f"{found:.1f} %" if name == LOST else value(found)

    for key, level in itertools.product(("default", "half the steps"), LEVELS):
        cells = [
            f"**{mean(key, level, name)}** ({', '.join(map(value, validated(key, level, name)))})"
            for name in ("AP", "AP50")
        ]
        cells += [mean(key, level, name) for name in ("AP75", "AR1", "AR10", *iou, LOST)]
        assert f"| {' | '.join(cells)} |" in training, (key, level)
    for times, key in (
        ("not at all", "default, cells not shared"),
        *((str(times), f"default, cells shared {times}x") for times in (1, 2, 6)),
        ("4 (default)", "default"),
    ):
        cells = [mean(key, level, "AP") for level in LEVELS]
        cells += [mean(key, "M", name) for name in (*iou, LOST)]
        assert has_row(times, *cells, mean(key, "H", LOST)), times


def test_two_levels() -> None:
    timed = {
        preset: f"{statistics.median(seconds):.3f}"
        for preset, seconds in read("digits")["multiscale"]["seconds in turn"].items()
    }
    for preset, points, seconds, key, steps in (
        ("small", "12", timed["small"], "default", "4,000"),
        ("multiscale", "6 + 6", timed["multiscale"], "multiscale", "3,800"),
        ("multiscale", "8 + 4", "-", "multiscale, 8 + 4 points", "3,800"),
    ):
        cells = [f"`{preset}`", points, seconds, steps]
        cells += [spread(validated(key, level, "AP")) for level in LEVELS]
        cells += [spread(validated(key, level, LOST), percent=True) for level in ("EM", "M", "H")]
        assert has_row(*cells), key


def test_attention() -> None:
    """What each kind has after every validation, and how many steps each needs for the same AP."""
    attention = recorded("attention")
    table = to_table(attention).splitlines()[2:]
    for line, (kind, variant) in zip(table, attention.items(), strict=True):
        _, parameters, seconds, _, _, *figures = line.strip("| ").split(" | ")[:8]
        assert has_row(kind, parameters, seconds, *figures)
        assert has_row(kind, *curve(variant))
    reached = {kind: means(variant) for kind, variant in attention.items()}

    def steps_to(kind: str, wanted: float) -> float:
        """The first ones, between two validations."""
        after = next(n for n, (_, ap) in enumerate(reached[kind]) if ap >= wanted)
        return interpolate([(ap, step) for step, ap in reached[kind][: after + 1]], wanted)

    compared = [ap for step, ap in reached["dense"] if 3000 <= step <= 7000]
    dense, deformable = (
        [steps_to(kind, ap) for ap in compared] for kind in ("dense", "deformable")
    )
    for steps in (dense, deformable):
        assert has_row(*(f"{each:,.0f}" for each in steps))
    assert has_row(*(f"{one / other:.1f}" for one, other in zip(dense, deformable, strict=True)))
    end = reached["dense"][-1][1]
    seen = f"about {round(steps_to('deformable', end), -2):,.0f}"
    for page in ("README.md", "docs/internals/experiments.md", "docs/internals/paper.md"):
        assert seen in " ".join((ROOT / page).read_text().split()), page
    ahead = value(reached["deformable"][-1][1] - end)
    assert f"ends {ahead} higher" in " ".join(EXPERIMENTS.split())
    paper = (ROOT / "docs/internals/paper.md").read_text()
    for steps, kinds in (
        ("1,000", [recorded("rates")[name] for name in ("d-1e-3", "dense-1e-3")]),
        ("10,000", list(attention.values())),
    ):
        seeds = " and ".join(dict.fromkeys(str(len(each.runs)) for each in kinds))
        assert f"| {steps} | {seeds} | {' | '.join(ends(each, 'AP') for each in kinds)} |" in paper


def test_rates() -> None:
    for name, variant in recorded("rates").items():
        kind, rate = name.split("-", 1)
        default = " (default)" if name == "d-1e-3" else ""
        cells = [value(ap) for _, ap in variant.runs[0].figures["AP"]]
        assert has_row({"d": "deformable"}.get(kind, kind), f"{rate}{default}", *cells), name


def test_encoder_and_decoder() -> None:
    parts, rates = recorded("parts"), recorded("rates")
    for encoder, decoder, variant in (
        ("dense", "dense", rates["dense-1e-3"]),
        ("deformable", "dense", parts["encoder"]),
        ("dense", "deformable", parts["decoder"]),
        ("deformable", "deformable", rates["d-1e-3"]),
    ):
        cells = [*curve(variant)[:-1], ends(variant, "AP")]
        assert has_row(encoder, decoder, str(len(variant.runs)), *cells)


def test_larger_volume() -> None:
    for kind, variant in recorded("larger").items():
        cells = [f"{variant.step_seconds:.2f}", *curve(variant)[:-1], ends(variant, "AP")]
        assert has_row(kind, *cells), kind


def test_points() -> None:
    """K = 12 was timed beside the others, and trained for another table."""
    paper = (ROOT / "docs/internals/paper.md").read_text()
    in_paper = {"K16": " 33.8 †", "K32": " 34.6 †"}
    for name, timed in recorded("points").items():
        trained = recorded("rates")["d-1e-3"] if name == "K12" else timed
        k, ap = name.removeprefix("K"), ends(trained, "AP")
        cells = [f"{timed.parameters:,}", f"{timed.step_seconds:.3f}", *curve(trained)[:-1], ap]
        assert has_row(f"{k} (default)" if name == "K12" else k, *cells), name
        assert f"| {k} |{in_paper.get(name, '')} | {ap} |" in paper, name


def test_mask_heads() -> None:
    """`dynamic` was timed beside VisTR's, and trained for another table."""
    masks = recorded("masks")
    for name, timed, trained in (
        ("dynamic (default)", masks.pop("dynamic"), recorded("time")["volume"]),
        ("VisTR's", head := masks.pop("VisTR's"), head),
    ):
        steps = f"{means(trained)[-1][0]:,}"
        cells = [ends(trained, figure) for figure in FIGURES]
        assert has_row(name, f"{timed.step_seconds:.3f}", steps, *cells), name
    assert masks
    for name, variant in masks.items():
        words = re.fullmatch(r"focal (\d+), dice (\d)(, begins at \.50)?", name)
        assert words, name
        begins = ".50" if words[3] else ".12"
        assert has_row(f"{words[1]}, {words[2]}", begins, *curve(variant)), name


def test_the_papers_model() -> None:
    """The losses of an epoch are the mean of its two clips."""
    record = read("paper")
    for name in ("total", "class", "l1", "giou", "mask", "dice"):
        epochs = [statistics.mean(pair) for pair in zip(*[iter(record[name])] * 2, strict=True)]
        digits = 1 if name == "total" else 3
        shown = (f"{epochs[n - 1]:.{digits}f}".removeprefix("0") for n in (1, 3, 6, 9, 12, 15))
        assert has_row(name, *shown), name
    words = " ".join(EXPERIMENTS.split())
    assert f"A step took {statistics.median(record['seconds of each step']):.0f} s" in words
    assert f"process held {record['most memory of the process, GiB']} GiB" in words
