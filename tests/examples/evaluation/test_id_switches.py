"""What identity switches cost, on tracks with known overlaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defvis.data import rle
from defvis.data.rle import RLE
from defvis.data.ytvis import Track, Video, YouTubeVIS
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


def _result(masks: list[RLE | None], category: int = 1) -> dict[str, Any]:
    shown = [None if mask is None else rle.to_json(mask) for mask in masks]
    return {"video_id": 1, "category_id": category, "score": 0.5, "segmentations": shown}


def test_tracks_that_hold() -> None:
    found = measure_id_switches(_data([A] * 4, [B] * 4), [_result([A] * 4), _result([B] * 4)])
    assert (found.one_result, found.best_per_frame, found.tracks) == (1, 1, 2)
    assert found.share_of_loss == 0


def test_tracks_that_change_over_half_way() -> None:
    results = [_result([A, A, B, B]), _result([B, B, A, A], category=2)]
    found = measure_id_switches(_data([A] * 4, [B] * 4), results)
    assert (found.one_result, found.best_per_frame) == (0.5, 1)
    assert found.share_of_loss == 1
    assert "identity switches are 100.0% of the loss (2 objects)" in str(found)


def test_bad_masks_are_no_identity_switch() -> None:
    half = _block(0, width=2)
    found = measure_id_switches(_data([A, A, None, None]), [_result([half] * 4)])
    assert (found.one_result, found.best_per_frame) == (0.5, 0.5)  # absent frames do not count
    assert found.share_of_loss == 0


def test_objects_that_nobody_found() -> None:
    found = measure_id_switches(_data([A] * 4), [])
    assert (found.one_result, found.best_per_frame) == (0, 0)


def test_nothing_to_find() -> None:
    for data in (_data([None] * 4), _data([A] * 4, crowd=True)):
        with pytest.raises(ValueError, match="no object is visible"):
            measure_id_switches(data, [])


def test_program_prints_it(
    digits: Path,
    tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--data", str(digits / "val"), "--results", str(tiny_run / "results.json")]
    program("evaluate_defvis")([*words, "--id-switches"])
    assert "identity switches are" in capsys.readouterr().out
    program("evaluate_defvis")(words)
    assert "switches" not in capsys.readouterr().out
