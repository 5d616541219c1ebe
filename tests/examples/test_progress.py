"""Progress off a terminal: few, whole lines."""

from __future__ import annotations

import sys

import pytest

from defvis import progress
from defvis.progress import Progress, followed


class _Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def test_a_line_every_ten_seconds(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("joint", "step", total=60, first=10) as shown:
        for _ in range(50):
            clock.now += 0.5
            shown.show({"loss": "0.5", "AP": ".1"})
            shown.update()
        shown.write("between")
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "joint: 30 of 60 steps, 2.0 steps/s, 00:15 left, loss 0.5, AP .1",
        "joint: 50 of 60 steps, 2.0 steps/s, 00:05 left, loss 0.5, AP .1",
        "joint: 60 of 60 steps in 00:25, loss 0.5, AP .1",
    ]
    assert out == "between\n"


def test_short_and_disabled_work_is_silent(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in followed(range(99), "short", "frame"):
        clock.now += 0.1
    for _ in followed(range(9), "of another rank", "frame", disable=True):
        clock.now += 60
    assert capsys.readouterr().err == ""


def test_nested_blocks_share_their_lines(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for video in followed(range(3), "predict", "video"):
        with Progress(f"video {video}", "clip", total=5) as inner:
            for _ in range(5):
                clock.now += 3
                inner.update()
    assert capsys.readouterr().err.splitlines() == [
        "predict: 0 of 3 videos; video 0: 4 of 5 clips, 3.0 s/clip, 00:03 left",
        "predict: 1 of 3 videos; video 1: 3 of 5 clips, 3.0 s/clip, 00:06 left",
        "predict: 2 of 3 videos; video 2: 2 of 5 clips, 3.0 s/clip, 00:09 left",
        "predict: 3 of 3 videos in 00:45",
    ]


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("predict", "video", total=2) as shown:
        shown.update()
        shown.show({"AP": ".1"})
        shown.write("between")
    out, err = capsys.readouterr()
    assert "predict:  50%" in err
    assert "AP=.1" in err
    assert out == "between\n"
