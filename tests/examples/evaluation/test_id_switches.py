"""What identity switches cost, on tracks with known overlaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defvis.data import rle
from defvis.data.dataset import Track, Video, YouTubeVIS
from defvis.data.rle import RLE
from defvis.evaluation.comparison import compare
from defvis.evaluation.id_switches import measure_id_switches
from tests.examples.support import program


def _block(left: int, width: int = 4) -> RLE:
    mask = np.zeros((8, 16), dtype=bool)
    mask[:4, left : left + width] = True
    return rle.encode(mask)


A, B = _block(0), _block(8)


def _data(*tracks: list[RLE | None], crowd: bool = False) -> YouTubeVIS:
    made = tuple(
        Track(i, 0, tuple(masks), tuple(m and float(rle.area(m)) for m in masks), crowd)
        for i, masks in enumerate(tracks, start=1)
    )
    return YouTubeVIS((Video(1, 16, 8, (Path("x"),) * 4, made),), (1, 2), ("a", "b"))


def _result(masks: list[RLE | None], category: int) -> dict[str, Any]:
    shown = [None if mask is None else rle.to_json(mask) for mask in masks]
    return {"video_id": 1, "category_id": category, "score": 0.5, "segmentations": shown}


HALF = _block(0, width=2)


@pytest.mark.parametrize(
    ("truths", "results", "one_result", "best_per_frame", "share"),
    [
        ([[A] * 4, [B] * 4], [[A] * 4, [B] * 4], 1, 1, 0),
        ([[A] * 4, [B] * 4], [[A, A, B, B], [B, B, A, A]], 0.5, 1, 1),
        ([[A, A, None, None]], [[HALF] * 4], 0.5, 0.5, 0),  # absent frames do not count
        ([[A] * 4], [], 0, 0, 0),
    ],
    ids=["tracks that hold", "tracks that change over", "bad masks", "nothing found"],
)
def test_share_of_the_loss(
    truths: list[Any], results: list[Any], one_result: float, best_per_frame: float, share: float
) -> None:
    made = [_result(masks, category) for category, masks in enumerate(results, start=1)]
    found = measure_id_switches(compare(_data(*truths), made))  # whatever their class
    assert (found.one_result, found.best_per_frame) == (one_result, best_per_frame)
    assert (found.tracks, found.share_of_loss) == (len(truths), share)
    assert f"identity switches are {share:.1%} of the loss ({len(truths)} objects)" in str(found)


def test_nothing_to_find() -> None:
    for data in (_data([None] * 4), _data([A] * 4, crowd=True)):
        with pytest.raises(ValueError, match="no object is visible"):
            measure_id_switches(compare(data, []))


def test_program_prints_it(
    digits: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(digits / "val"), "--results", str(tiny_run / "results.json")]
    program("evaluate_defvis")([*words, "--id-switches"])
    assert "identity switches are" in capsys.readouterr().out
    program("evaluate_defvis")(words)
    assert "switches" not in capsys.readouterr().out
