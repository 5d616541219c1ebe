"""Pictures of long videos and of names in any script; files that are whole or not there."""

from __future__ import annotations

import resource
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from defvis.data import rle
from defvis.evaluation import fonts
from defvis.evaluation.overlays import (
    DrawnFrames,
    Overlay,
    draw_overlay,
    every_nth,
    save_animation,
    save_sheet,
    save_video,
    sheet_scale,
)
from defvis.evaluation.whole_file import whole_file, write_results

MASK = rle.encode(np.pad(np.ones((20, 40), dtype=bool), ((20, 4), (4, 16))))


def _drawn(name: str) -> bytes:
    black = np.zeros((44, 60, 3), dtype=np.uint8)
    return draw_overlay(black, [Overlay(1, name, {0: MASK})], 0, 4).tobytes()


def test_names_in_other_scripts_can_be_told_apart() -> None:
    """In a font that has the characters, or by their code points."""
    names = ["猫", "犬", "猫犬", "кот", "кит", "café", "cafè", "cafe", "a\tb", "a\nb", "\u200b",
             "\U0001f42e"]  # fmt: skip
    assert len({_drawn(name) for name in names}) == len(names)


def test_a_class_that_no_font_can_draw_goes_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    private = "\U0010fffd"  # a character of private use, which no font should have
    assert fonts.class_texts(["cat", "кот", private, " "], [3, 4, 7, 9]) == [
        "cat", "кот", "class 7", "class 9",
    ]  # fmt: skip
    text, font = fonts.readable("#1: кот 0.5", 13)
    assert text == "#1: кот 0.5"
    shown = [bytes(font.getmask(c)) for c in (*"кот", private)]
    assert len(set(shown)) == 4
    assert fonts.readable(f"#1: {private}", 13)[0] == "#1: U+10FFFD"


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(480, 800, 0.57), (300, 400, 0.37), (96, 160, 2), (96, 160, 1), (24, 40, 1), (7, 9, 2),
     (3, 300, 1)],
)  # fmt: skip
def test_texts_stay_inside_the_frame(
    height: int, width: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every edge, of names of any length; the score stays where there is room for it."""
    seen: list[str] = []
    size = max(1, round(width * scale)), max(1, round(height * scale))
    real = ImageDraw.ImageDraw.text

    def text(draw: ImageDraw.ImageDraw, place: Any, text: str, **words: Any) -> None:
        left, top, right, bottom = draw.textbbox(place, text, font=words["font"])
        if min(size) > 8:  # Else it has no room for letters.
            assert left >= 0
            assert top >= 0
            assert right < size[0]
            assert bottom < size[1]
        seen.append(text)
        real(draw, place, text, **words)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    places = [(0, 0), (0, width - 2), (height - 2, 0), (height - 2, width - 2)]
    names = ["cat 0.93", "an articulated lorry with a long trailer that goes on and on 0.93"]
    for top, left in places:
        mask = np.zeros((height, width), dtype=bool)
        mask[top : top + 2, left : left + 2] = True
        overlays = [Overlay(1, name, {0: rle.encode(mask)}) for name in names]
        assert draw_overlay(frame, overlays, 0, scale).size == size
    assert len(seen) == 8
    if size[0] > 100 and size[1] > 20:
        assert all(text.startswith("#1: ") and text.endswith(" 0.93") for text in seen)
        assert ("..." in seen[1] or ".. 0.93" in seen[1]) is (size[0] < 400)


def test_sheets_are_at_most_2000_pixels_wide() -> None:
    assert sheet_scale(96, 6, 320) == 3
    assert sheet_scale(300, 6, 320) == 1
    for width, columns in ((96, 12), (167, 12), (1920, 6), (4096, 1), (1080, 5), (333, 6)):
        scale = sheet_scale(width, columns, 320)
        row = columns * (round(width * scale) + 2) - 2
        assert 1980 < row <= 2000


class Counted:
    """A video that counts the pictures in memory."""

    id, width, height = 1, 32, 24

    def __init__(self, length: int) -> None:
        self.length, self.alive, self.most = length, 0, 0

    def frame(self, index: int) -> np.ndarray:
        return np.full((self.height, self.width, 3), index * 97 % 256, dtype=np.uint8)

    def images(self) -> Iterator[Image.Image]:
        """A generator, whose length is unknown."""
        for image in DrawnFrames(self, [], 1, range(self.length)):
            weakref.finalize(image, self._gone)
            self.alive += 1
            self.most = max(self.most, self.alive)
            yield image
            del image

    def _gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("length", [1, 2, 100])
def test_an_animation_has_few_frames_in_memory(length: int, tmp_path: Path) -> None:
    video, path = Counted(length), tmp_path / "film.webp"
    save_animation(video.images(), path, 40)
    assert video.most <= 3
    with Image.open(path) as film:
        assert film.n_frames == length
        for index in (0, length // 2, length - 1):
            film.seek(index)
            assert abs(int(np.asarray(film)[5, 5, 0]) - index * 97 % 256) < 4
            assert length == 1 or (film.load(), film.info["duration"])[1] == 40
    known = tmp_path / "known.webp"
    save_animation(DrawnFrames(video, [], 1, range(length)), known, 40)
    assert known.read_bytes() == path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("length", [1, 12, 13, 500, 10_001])
def test_every_nth(length: int) -> None:
    frames = every_nth(length, 12)
    assert frames[0] == 0
    assert min(length, 6) <= len(frames) <= 12
    assert length - frames[-1] <= frames.step


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[None]:
    """No file can have more than 2,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _noise() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (48, 64, 3)).astype(np.uint8))] * 3


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("results.json", lambda path: write_results(path, ({"n": n} for n in range(1000)))),
        ("film.webp", lambda path: save_animation(_noise(), path)),
        ("sheet.png", lambda path: save_sheet(_noise(), path, 2)),
        ("film.mp4", lambda path: save_video(_noise(), path, 5.0)),
    ],
)
def test_a_full_disk_leaves_what_was_there(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    if name == "film.mp4":
        pytest.importorskip("av", reason="PyAV is not installed")
    path = tmp_path / name
    path.write_text("older")
    with pytest.raises(OSError, match=rf"cannot write {path}: File too large"):
        write(path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_file_is_not_there(tmp_path: Path) -> None:
    def write() -> None:
        with whole_file(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())
