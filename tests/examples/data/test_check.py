"""What a run will need is looked at before its first step."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defvis.data.check import check_frames
from defvis.data.dataset import Video
from defvis.decoding.errors import DataError


@pytest.fixture
def videos(tmp_path: Path) -> list[Video]:
    """Three videos of four frames, each in a folder of its own."""
    made = []
    for number in (1, 2, 3):
        folder = tmp_path / f"{number:05d}"
        folder.mkdir()
        files = tuple(folder / f"{frame:05d}.jpg" for frame in range(4))
        for file in files:
            Image.new("RGB", (8, 6)).save(file)
        made.append(Video(number, 8, 6, files, ()))
    return made


def test_good_frames(videos: list[Video]) -> None:
    check_frames(videos)
    check_frames([])
    around = tuple(file.parent / "../00001" / file.name for file in videos[0].files)
    check_frames([dataclasses.replace(videos[0], files=around)])


def test_missing_frames_are_counted(videos: list[Video]) -> None:
    videos[1].files[2].unlink()
    place = r"video 2, frame 2: cannot read .*00002/00002\.jpg: no such file"
    with pytest.raises(DataError, match=f"^a frame is missing: {place}$"):
        check_frames(videos)
    videos[1].files[3].unlink()
    with pytest.raises(DataError, match=f"^2 frames of a video are missing, the first: {place}$"):
        check_frames(videos)
    shutil.rmtree(videos[2].files[0].parent)
    with pytest.raises(DataError, match=f"^6 frames of 2 videos are missing, the first: {place}$"):
        check_frames(videos)
    with pytest.raises(DataError, match=r"^4 frames .* video 3, frame 0: .* file or directory"):
        check_frames(videos[2:])


@pytest.mark.parametrize("name", ["00001.JPG", "00001.png"])
def test_another_name_of_the_frame_is_named(videos: list[Video], name: str) -> None:
    file = videos[0].files[1]
    file.rename(file.with_name(name))
    with pytest.raises(DataError, match=rf"video 1, frame 1: .*: there is only {name}"):
        check_frames(videos)


def test_what_is_no_picture(videos: list[Video]) -> None:
    first, second, *_, last = videos[2].files
    good = second.read_bytes()
    second.write_bytes(b"")
    with pytest.raises(DataError, match=r"video 3, frame 1: .*00001\.jpg: the file is empty"):
        check_frames(videos)
    second.unlink()
    second.symlink_to("nowhere")
    with pytest.raises(DataError, match=r"video 3, frame 1: .*00001\.jpg: No such file"):
        check_frames(videos)
    second.unlink()
    second.write_bytes(good)
    good = first.read_bytes()
    first.write_bytes(good[:-4])
    with pytest.raises(DataError, match=r"video 3, frame 0: cannot read .*00000\.jpg: .*truncated"):
        check_frames(videos)
    first.write_bytes(good)
    last.unlink()
    last.mkdir()
    with pytest.raises(DataError, match=r"video 3, frame 3: .*00003\.jpg: it is a folder"):
        check_frames(videos)
    last.rmdir()
    Image.new("RGB", (6, 8)).save(last)
    with pytest.raises(DataError, match=r"video 3, frame 3: .* must be 8 x 6 pixels, got 6 x 8"):
        check_frames(videos)
    Image.new("RGB", (8, 6)).save(last)
    for number, file in enumerate(videos[2].files):
        Image.fromarray(np.full((6, 8), 900 * number, np.uint16)).save(file, format="PNG")
    with pytest.raises(DataError, match=r"video 3: cannot read .* are 12 steps in 8 bits"):
        check_frames(videos)
