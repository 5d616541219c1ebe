"""Folders of pictures: natural order, one size, and nothing passed over without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from defvis.data.sources import open_source
from defvis.decoding.errors import DataError


def _write(folder: Path, *names: str, size: tuple[int, int] = (4, 3)) -> None:
    for number, name in enumerate(names):
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)


@pytest.mark.parametrize(
    "names",
    [
        [f"frame{number}.png" for number in range(1, 13)],
        ["a1b9.png", "a1b10.png", "a2b1.png", "a10b1.png"],
        ["8.png", "9.PNG", "010.png", "11.Jpeg", "100.BMP"],
        ["IMG_2.png", "img_10.png", "IMG_11.png"],
        ["f\u0661.png", "f\u0669.png", "f\u0661\u0660.png"],  # Arabic digits 1, 9, 10
    ],
)
def test_natural_order(tmp_path: Path, names: list[str]) -> None:
    _write(tmp_path, *reversed(names))
    source = open_source(tmp_path)
    assert [file.name for file in source.files] == names
    assert source.notes == ()


def test_every_counts_frames_in_their_order(tmp_path: Path) -> None:
    _write(tmp_path, *(f"{number}.png" for number in range(12)))
    source = open_source(tmp_path, every=5)
    assert [source.frame(index)[0, 0, 0] for index in range(source.length)] == [0, 5, 10]


@pytest.mark.parametrize(
    "names", [("1.jpg", "1.png"), ("f1.jpg", "f01.jpg"), ("a1.png", "A1.png"), ("1.jpg", "1.JPG")]
)
def test_an_uncertain_order_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    _write(tmp_path, "0.png", *names)
    with pytest.raises(DataError, match="one frame, or two") as caught:
        open_source(tmp_path)
    assert all(name in str(caught.value) for name in names)


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path) -> None:
    _write(tmp_path, "1.png", "2.png")
    for name in ("._1.png", ".DS_Store", "Thumbs.db", "desktop.ini", "3.HEIC"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "4.png").mkdir()
    source = open_source(tmp_path)
    assert [file.name for file in source.files] == ["1.png", "2.png"]
    assert source.notes == (
        "pictures of a kind that is not read are left out: 3.HEIC",
        "passed over, as they are no pictures: .DS_Store, ._1.png, 4.png, ... (6 in all)",
    )


def test_folders_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "00001").mkdir()
    with pytest.raises(DataError, match=r"holds no pictures .* but folders; .*: 00001"):
        open_source(tmp_path)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(DataError, match=r"holds no pictures .*; give a video itself: a\.mp4"):
        open_source(tmp_path)
    (tmp_path / "a.heic").touch()
    with pytest.raises(DataError, match=r"holds no pictures .*; save a\.heic as one of these"):
        open_source(tmp_path)


def test_all_headers_are_read_at_once(tmp_path: Path) -> None:
    _write(tmp_path, "1.png", "2.png", "3.png")
    _write(tmp_path, "4.png", size=(3, 4))
    with pytest.raises(DataError, match=r"4\.png must be 4 x 3 pixels, got 3 x 4"):
        open_source(tmp_path)
    assert open_source(tmp_path, every=2).length == 2
    (tmp_path / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read .*4\.png: the file is empty"):
        open_source(tmp_path)
    (tmp_path / "4.png").unlink()
    (tmp_path / "4.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cannot read .*4\.png: No such file"):
        open_source(tmp_path)


def test_one_picture(tmp_path: Path) -> None:
    _write(tmp_path, "1.png")
    assert open_source(tmp_path / "1.png").length == 1
    page = Image.new("L", (4, 3))
    page.save(tmp_path / "2.tif", save_all=True, append_images=[page, page])
    with pytest.raises(DataError, match=r"2\.tif as one picture: it holds 3 frames"):
        open_source(tmp_path / "2.tif")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/dev/null", "is neither a folder nor a file"),
        ("-", "there is no file or folder -$"),
        ("rtsp://camera/1", "addresses are not opened"),
        ("frames/*.png", "patterns are not expanded"),
        ("frames/%04d.png", "patterns are not expanded"),
    ],
)
def test_what_is_no_source(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(Path(source))
