"""What is said of a video in which little was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from defvis.data.rle import RLE
from defvis.evaluation.distinct import distinct
from defvis.evaluation.summary import summary, threshold_for
from defvis.evaluation.tracks import SlotTrack
from tests.examples.evaluation.made_tracks import A, B, C


def _track(identity: int, score: float, frames: range) -> SlotTrack:
    """Of class 1, at 0.01 of class 0."""
    scores = np.array([0.01 * score, score], dtype=np.float32)
    return SlotTrack(
        identity, scores, {frame: {"size": [1, 1], "counts": b"1"} for frame in frames}, 40
    )


def _lines(*tracks: SlotTrack, threshold: float = 0.3) -> list[str]:
    return list(summary(tracks, ["square", "circle"], threshold, 40))


def test_nothing_above_the_threshold_names_the_best() -> None:
    low, best = _track(0, 0.05, range(9)), _track(2, 0.11, range(3, 40))
    assert _lines(low, best) == [
        "40 frames, 0 objects with a score from 0.3; the best is a circle with 0.11 in frames 3 to "
        "39: --threshold 0.1 shows it"
    ]
    assert _lines(low, best, threshold=0.1)[1:] == [
        "  #2: circle 0.11, in frames 3 to 39",
    ]


def test_no_mask_at_all_says_why_it_may_be() -> None:
    (line,) = _lines()
    assert line.startswith("40 frames, nothing was found: no mask in any frame")
    assert "--short-side" in line


@pytest.mark.parametrize(
    ("score", "text"),
    [
        *((1.0, "1"), (0.999, "0.9"), (0.3, "0.2"), (0.1, "0.1"), (0.0999, "0.09")),
        *((0.25, "0.2"), (0.5, "0.5"), (0.00034, "0.0003"), (9e-5, "0"), (0.0, "0")),
    ],
)
def test_the_threshold_shows_the_object(score: float, text: str) -> None:
    """0.3 in binary is a little less."""
    assert threshold_for(score) == text
    assert float(text) <= score
    single = float(np.float32(score))
    assert float(threshold_for(single)) <= single


def test_one_track_is_shown_for_an_object() -> None:
    """Of two that share half of their pixels, frames counted, the one with the higher score."""

    def of(identity: int, score: float, mask: RLE, frames: range) -> SlotTrack:
        return replace(_track(identity, score, frames), masks=dict.fromkeys(frames, mask))

    best, beside = of(0, 0.9, A, range(4)), of(1, 0.8, B, range(4))
    again, part, later = (
        of(2, 0.7, A, range(2)),
        of(3, 0.6, A, range(1)),
        of(4, 0.5, A, range(4, 8)),
    )
    low = of(5, 0.2, C, range(4))
    assert distinct([low, later, part, again, beside, best], 0.3) == [later, part, beside, best]
    assert distinct([low], 0.3) == []
