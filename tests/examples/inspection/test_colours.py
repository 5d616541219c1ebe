"""Whether colours tell the classes of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defvis.data import rle
from defvis.data.dataset import Track, Video, YouTubeVIS
from defvis.inspection.colours import guess_by_colour

RED, GREEN, BLUE = (220, 30, 30), (30, 220, 30), (30, 30, 220)


def made(folder: Path, classes: list[int], colours: list[tuple[int, int, int]]) -> YouTubeVIS:
    """Videos of one frame with one object, a noisy square on grey, of the class and colour."""
    random = np.random.default_rng(0)
    mask = np.zeros((12, 12), dtype=bool)
    mask[3:9, 2:8] = True
    videos = []
    for number, (label, colour) in enumerate(zip(classes, colours, strict=True)):
        pixels = np.full((12, 12, 3), 128)
        pixels[mask] = np.clip(colour + random.normal(0, 20, (36, 3)), 0, 255)
        file = folder / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        track = Track(1, label, (rle.encode(mask),), (None,), False)
        videos.append(Video(number, 12, 12, (file,), (track,)))
    count = max(classes) + 1
    return YouTubeVIS(tuple(videos), tuple(range(count)), tuple(map(str, range(count))))


def test_colours_that_tell_all_or_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    classes = random.integers(3, size=90).tolist()
    telling = guess_by_colour(made(tmp_path, classes, [(RED, GREEN, BLUE)[c] for c in classes]))
    assert telling.right == 1
    assert not telling.says_little
    anything = [tuple(random.integers(256, size=3).tolist()) for _ in classes]
    silent = made(tmp_path, classes, anything)
    guess = guess_by_colour(silent)
    assert guess.right == pytest.approx(guess.chance, abs=0.15)
    assert guess.says_little
    assert not guess_by_colour(silent.first(40)).says_little, "too few to say"
    for video in silent.videos[::3]:
        video.files[0].unlink()
    assert guess_by_colour(silent).objects == 60, "what cannot be read is passed over"


def test_one_class_with_a_colour_is_enough(tmp_path: Path) -> None:
    """Though it is rare, and nine others are of any colour."""
    random = np.random.default_rng(2)
    classes = [0] * 6 + random.integers(1, 10, size=120).tolist()
    colours = [
        tuple(random.integers(120, 256, size=3).tolist()) if label else (0, 0, 90)
        for label in classes
    ]
    guess = guess_by_colour(made(tmp_path, classes, colours))
    assert guess.best == 1
    assert not guess.says_little


def test_one_class_is_found_by_its_colour(tmp_path: Path) -> None:
    assert not guess_by_colour(made(tmp_path, [0] * 70, [RED] * 70)).says_little
