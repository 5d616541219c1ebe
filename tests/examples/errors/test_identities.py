"""Objects that are split, merged and swapped, on tracks made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from defvis.errors.counts import VideoErrors, count_errors
from defvis.errors.words import describe
from defvis.evaluation.comparison import compare
from tests.examples.evaluation.made_tracks import A, B, C, block, dataset, result, track

LEFT, RIGHT = block(0, width=2), block(2, width=3)  # together A
AB = block(0, width=10)


def errors(truths: list[Any], results: list[Any], threshold: float = 0.3) -> VideoErrors:
    """Of one video; results by falling score."""
    data = dataset([track(i, masks) for i, masks in enumerate(truths)])
    made = [result(masks, 0.9 - 0.1 * i) for i, masks in enumerate(results)]
    return count_errors(data, compare(data, made), threshold).videos[0]


@pytest.mark.parametrize(
    ("truths", "results", "words"),
    [
        ([[A] * 4, [B] * 4], [[A] * 4, [B] * 4], []),
        ([[A] * 4, [B] * 4], [[A, A, B, B], [B, B, A, A]],
         ["objects 0 and 1 are swapped from frame 2 on"]),
        ([[A] * 4, [B] * 4], [[A, B, B, A], [B, A, A, B]],
         ["objects 0 and 1 are swapped from frame 1 on"]),
        # The second result follows the first one's object later, the first one takes none.
        ([[A] * 4, [B] * 4], [[A, A, None, None], [B, B, A, A]], []),
        ([[A] * 4], [[A, A, None, None], [None, None, A, A]], ["object 0 (a) is split into"]),
        ([[A] * 4], [[LEFT] * 4, [RIGHT] * 4], ["object 0 (a) is split into"]),
        ([[A] * 4], [[A] * 4, [LEFT] * 4], []),  # a part of what is found already
        ([[A] * 4], [[A] * 4, [A, A, A, None]], []),
        ([[A] * 4], [[A, A, None, None], [C, None, A, C]], []),  # more outside than in
        ([[A] * 4, [B] * 4], [[AB] * 4], ["covers objects 0 and 1 at once in frames 0 to 3"]),
        ([[A] * 4, [B] * 4], [[AB] * 4, [B] * 4], []),  # the second has its own result
        ([[A] * 4, [B] * 4], [[AB, A, A, A]], []),
        ([[A] * 4, [None, None, B, B]], [[A, A, AB, A]],
         ["covers objects 0 and 1 at once in frame 2"]),
    ],
)  # fmt: skip
def test_made_by_hand(truths: list[Any], results: list[Any], words: list[str]) -> None:
    found = errors(truths, results)
    identities = found.identities
    events = len(identities.swapped) + len(identities.split) + len(identities.merged)
    said = [line.translate({0x2068: None, 0x2069: None}) for line in describe(found, "a")]
    assert events == len(words)
    for sentence, expected in zip(said, words, strict=False):
        assert expected in sentence


def test_whose_frames_they_are() -> None:
    """A frame belongs to the result that fits best there, from the threshold on."""
    found = errors([[A, A, A, None], [B] * 4], [[A, C, None, A], [B, B, AB, LEFT]])
    assert found.identities.holder.tolist() == [[0, -1, 1, -1], [1, 1, -1, -1]]
    none = errors([[A] * 4], [[A] * 4], threshold=0.95)
    assert none.identities.holder.tolist() == [[-1] * 4]
    crowd = dataset([track(1, [A] * 4, crowd=True)])
    found = count_errors(crowd, compare(crowd, [result([A] * 4, 0.9)]), 0.3).videos[0]
    assert found.identities.holder.tolist() == [[-1] * 4]


def test_more_masks_than_a_byte_counts() -> None:
    """In one track and in one frame; pycocotools' area of a list overflows there."""
    data = dataset([track(0, [A] * 300)], length=300)
    (comparison,) = compare(data, [result([A] * 300, 0.9)])
    assert comparison.iou.tolist() == [[1.0]]
    crowded = dataset([track(i, [A]) for i in range(300)], length=1)
    (comparison,) = compare(
        crowded, [result([block(i % 9, i // 9 % 9 + 1)], i / 300) for i in range(300)]
    )
    assert comparison.overlaps.first_areas.sum() > 0
