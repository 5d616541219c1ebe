"""What is said of the scale at which a model is shown frames."""

from __future__ import annotations

import re

import pytest

from defvis.config import DataConfig
from defvis.data.dataset import Video
from defvis.data.resize_crop import network_size
from defvis.evaluation.scale import scale_notes, with_short_side

SEEN = DataConfig(seen_short_sides=(96, 120))


def _notes(trained: DataConfig, *sizes: tuple[int, int], short_side: int = 0) -> list[str]:
    """Of videos of some widths and heights."""
    videos = [Video(1, width, height, (), ()) for width, height in sizes]
    return list(scale_notes(videos, trained, with_short_side(trained, short_side)))


def test_nothing_is_said_where_nothing_is_scaled() -> None:
    assert _notes(SEEN, (160, 96), (120, 200)) == []
    assert _notes(DataConfig(short_side=96), (160, 96)) == []
    assert _notes(SEEN) == []


def test_scaled_frames_are_named() -> None:
    assert _notes(SEEN, (800, 480), (160, 96)) == [
        "frames of 800 x 480 pixels are shown to the model at 200 x 120, as in training"
    ]
    (note,) = _notes(DataConfig(short_side=90), *((2 * side, side) for side in (99, 100, 101, 102)))
    assert note == (
        "frames of 198 x 99 pixels are shown to the model at 180 x 90, of 200 x 100 at 180 x 90, "
        "of 202 x 101 at 180 x 90, ... (4 sizes in all), as in training"
    )


@pytest.mark.parametrize(
    ("trained", "near", "far", "said"),
    [
        (SEEN, 179, 180, "1.5 times larger than in training, .* --short-side 120 is as in"),
        (SEEN, 65, 64, "1.5 times smaller than in training, .* --short-side 96 is as in"),
        (DataConfig(short_side=100), 149, 200, "2 times larger .* --short-side 100 is"),
        (DataConfig(short_sides=(100, 150)), 90, 300, "2 times larger .* --short-side 150 is"),
        # On wide video the limit makes the short side 90 in training, too.
        (DataConfig(short_side=100, long_side=150), 134, 135, "1.5 times .* --short-side 90 is"),
    ],
)
def test_a_scale_far_from_trainings(trained: DataConfig, near: int, far: int, said: str) -> None:
    (note,) = _notes(trained, (500, 300), short_side=near)
    assert note.endswith("as --short-side says")
    note = _notes(trained, (500, 300), short_side=far)[-1]
    assert re.match(f"warning: the model is shown frames with a short side of {far} .*{said}", note)


def test_little_frames_lack_details() -> None:
    (_, note) = _notes(SEEN, (80, 40))
    assert note == (
        "warning: frames of 80 x 40 pixels are enlarged 2.4 times: details that larger ones have "
        "are not there"
    )


def test_a_run_that_does_not_say_its_scale() -> None:
    (note,) = _notes(DataConfig(), (800, 480))
    assert note.startswith("the run does not say at which scale it was trained")
    (note,) = _notes(DataConfig(), (800, 480), short_side=96)
    assert note.endswith("at 160 x 96, as --short-side says")


def test_short_side_replaces_the_scale_of_the_run() -> None:
    trained = DataConfig(short_sides=(48, 96), long_side=100, seen_short_sides=(96,), flip=0.5)
    used = with_short_side(trained, 240)
    assert network_size(480, 960, used) == (240, 480)
    assert used.flip == 0.5
    assert with_short_side(trained, 0) == trained
