"""Performance targets: each checks its own rows only, and its status can be read off the figure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from benchmarks.measure.rows import Row
from benchmarks.report.targets import BASELINES, GPU_TARGETS, TARGETS, Check, Target, check

EVERY = [*TARGETS, *GPU_TARGETS]


def _name(target: Target) -> str:
    return f"{target.says}, {target.label}, {target.mode}"


def _row(target: Target, value: float, **more: Any) -> Row:
    return {
        "device": "cpu" if target.threads else "some GPU",
        "subject": target.subject,
        "cpu": "one",
        "cores": 2,
        "simd": "avx2",
        "measurement": target.measurement,
        "variant": target.variants[0],
        "mode": target.mode,
        "label": target.label,
        "threads": target.threads or 8,
        "ratio": {"median": None},
        target.figure: {"median": value},
        **more,
    }


def _checks(target: Target, *rows: Row) -> list[Check]:
    return [each for each in check(rows, EVERY) if each.target == target]


@pytest.mark.parametrize("target", EVERY, ids=_name)
def test_a_target_checks_its_own_row_only(target: Target) -> None:
    limit = target.at_least or target.at_most
    assert limit is not None
    better, worse = (1.01, 0.99) if target.at_least is not None else (0.99, 1.01)
    (met,) = _checks(target, _row(target, limit * better))
    assert met.status == "pass"
    (missed,) = _checks(target, _row(target, limit * worse))
    assert missed.status == "FALLS SHORT"
    other_device = "some GPU" if target.threads else "cpu"
    changes = [{"subject": "reference"}, {"mode": "?"}, {"label": "tiny"}, {"variant": "?"}]
    changes += [{"device": other_device}, {"threads": 3} if target.threads else {"label": "?"}]
    for change in changes:
        (other,) = _checks(target, {**_row(target, limit * better), **change})
        assert (other.status, other.measured) == ("not measured", "-")


@pytest.mark.parametrize("target", EVERY, ids=_name)
def test_the_status_can_be_read_off_the_figure(target: Target) -> None:
    scale = 1e6 if target.figure in ("seconds", "host") else 1
    for limit in filter(None, (target.at_least, target.at_most)):
        for share in (0.5, 0.9996, 1 - 1e-6, 1.0, 1 + 1e-6, 1.0004, 2.0):
            value = limit * share
            shown = target.show(value)
            assert target.is_met_by(float(shown) / scale) == target.is_met_by(value)
            assert len(shown.partition(".")[2]) >= 2
            assert float(shown) / scale == pytest.approx(value, abs=0.00501 / scale)


def test_no_more_digits_are_shown_than_the_status_needs() -> None:
    growth = next(target for target in TARGETS if target.measurement == "growth")
    shown = [growth.show(value) for value in (2.0964, 2.1037, 2.1, 2.10002)]
    assert shown == ["2.10", "2.104", "2.10", "2.10002"]
    overhead = next(target for target in TARGETS if target.figure == "seconds")
    assert [overhead.show(value) for value in (13.2e-6, 15.0012e-6)] == ["13.20", "15.001"]
    assert (growth.limit, overhead.limit) == ("<= 2.1x", "<= 15 us")
    exponent = next(target for target in TARGETS if target.figure == "exponent")
    assert exponent.limit == "0.95 to 1.05"
    assert [exponent.is_met_by(value) for value in (0.94, 1.0, 1.06)] == [False, True, False]


def test_the_last_row_of_each_machine_counts() -> None:
    target = TARGETS[0]
    other = _row(target, 2.0, cpu="other")
    found = _checks(target, _row(target, 1.0), _row(target, 100.0), other)
    assert [(each.value, each.status) for each in found] == [
        *((100.0, "pass"), (2.0, "FALLS SHORT")),
    ]


def test_a_wrong_answer_meets_no_target() -> None:
    target = GPU_TARGETS[0]
    (found,) = _checks(target, _row(target, 1e-6, wrong="by far"))
    assert found.status == "WRONG ANSWER"


def test_the_best_baseline_in_three_dimensions_is_what_counts() -> None:
    assert BASELINES == ("composite", "composite-compiled", "ops3d")
    target = next(
        target
        for target in GPU_TARGETS
        if target.variants == BASELINES and "bfloat16" in target.label
    )
    composite = _row(target, 9.0)
    assert _checks(target, composite)[0].measured == "9.00 composite"
    # On the locations that its dtype can hold; ours on them has no target.
    label = f"{target.label}, locations in bfloat16"
    third = _row(target, 3.9, variant="ops3d", label=label)
    (found,) = _checks(target, composite, third)
    assert (found.measured, found.status) == ("3.90 ops3d (slower: composite)", "FALLS SHORT")
    ours = dataclasses.replace(target, variants=("native",))
    assert not ours.is_about(_row(ours, 9.0, label=label))


def test_both_dtypes_are_compared_with_dense_attention_on_a_gpu() -> None:
    dense = [target for target in GPU_TARGETS if target.variants == ("dense",)]
    assert [(target.label, target.mode, target.at_least) for target in dense] == [
        (f"paper-encoder-large, {dtype}", "forward+backward", 5)
        for dtype in ("float32", "bfloat16")
    ]
