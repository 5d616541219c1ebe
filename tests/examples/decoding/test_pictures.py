"""Pictures are read as they are shown: turned, scaled, on white; what cannot be is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from defvis.decoding.errors import DataError
from defvis.decoding.pictures import (
    check_depth,
    check_picture,
    picture_size,
    read_grey_frames,
    read_picture,
)

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
RAMP = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(24, 0)
# What RAMP is in 8 bits, to the nearest.
GREYS = np.rint(RAMP[0] / 257).astype(np.uint8)


def _png(path: Path, pixels: NDArray[np.uint16], kind: int, *behind: tuple[bytes, bytes]) -> Path:
    """Writes 16-bit values as PNG, with chunks behind the pixels."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), *behind, (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    return path


def _tiff(path: Path, pixels: NDArray[np.generic], photometric: int = 1, bits: int = 0) -> Path:
    """Writes grey values as TIFF, in their own type and order of bytes, or packed to `bits`."""
    bits = bits or 8 * pixels.itemsize
    height, width = pixels.shape[0], pixels[0].nbytes * 8 // bits
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = ((256, width), (257, height), (258, bits), (259, 1), (262, photometric),
            (273, 8), (277, 1), (278, height), (279, pixels.nbytes), (339, kind))  # fmt: skip
    path.write_bytes(
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "I", 8 + pixels.nbytes)
        + pixels.tobytes()
        + struct.pack(order + "H", len(tags))
        + b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
        + struct.pack(order + "I", 0)
    )
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_all_orientations(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"0.{suffix}"
    exif = Image.Exif()
    for orientation in (*range(1, 9), 0, 9):
        exif[0x0112] = orientation
        Image.fromarray(NOISE).save(path, exif=exif)
        with Image.open(path) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        np.testing.assert_array_equal(read_picture(path), expected)
        assert picture_size(path) == expected.shape[:2]


def test_an_orientation_behind_the_pixels(tmp_path: Path) -> None:
    """Tools that only add to a PNG write there; the header alone does not show it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = RAMP[..., None].repeat(3, -1)
    path = _png(tmp_path / "0.png", pixels, 2, (b"eXIf", exif.tobytes()[6:]))
    assert read_picture(path).shape[:2] == picture_size(path) == (32, 24)


def test_the_size_that_a_dataset_states_is_that_of_the_shown_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "0.jpg"
    Image.fromarray(NOISE).save(path, exif=exif)
    check_picture(path, 32, 24)
    with pytest.raises(DataError, match=r"must be 32 x 24 pixels, got 24 x 32: .* orientation"):
        check_picture(path, 24, 32)
    with pytest.raises(DataError, match=r"must be 9 x 9 pixels, got 24 x 32$"):
        check_picture(path, 9, 9)


def test_plain_pictures_keep_their_bits(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        path = tmp_path / f"0.{suffix}"
        Image.fromarray(NOISE).save(path)
        with Image.open(path) as opened:
            np.testing.assert_array_equal(read_picture(path), np.asarray(opened))


def test_sixteen_bits_and_floats_are_scaled(tmp_path: Path) -> None:
    png, tiff = tmp_path / "0.png", tmp_path / "0.tif"
    floats = RAMP.astype(np.float32) / 65535
    for path in (
        _png(png, RAMP, 0),
        _tiff(tiff, RAMP),
        _tiff(tmp_path / "1.tif", RAMP.astype(">u2")),
        _tiff(tmp_path / "2.tif", 65535 - RAMP, photometric=0),  # zero is white
        _tiff(tmp_path / "3.tif", floats),
        _tiff(tmp_path / "4.tif", floats.astype(">f4")),
    ):
        np.testing.assert_array_equal(read_picture(path), np.tile(GREYS[:, None], (24, 1, 3)))
        assert picture_size(path) == (24, 32)
    twelve = (RAMP // 16).astype(int)
    pairs = twelve[:, ::2] << 12 | twelve[:, 1::2]
    packed = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], -1).astype(np.uint8)
    shown = read_picture(_tiff(tiff, packed.reshape(24, -1), bits=12))
    assert np.abs(shown[5, :, 1] - twelve[5] / 4095 * 255).max() <= 0.51
    colours = read_picture(_png(png, RAMP[..., None].repeat(3, -1), 2))
    assert np.abs(colours[0, :, 1] - GREYS.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype(np.uint32), "white is unknown"),
        (RAMP.astype(np.int16), "white is unknown"),
        (RAMP.astype(np.float32), "floats must be from 0 to 1"),
        (np.full((4, 4), np.nan, np.float32), "floats must be from 0 to 1"),
        (np.ones((4, 4), np.float64), "no picture that Pillow knows"),
    ],
)
def test_values_that_cannot_be_shown_are_refused(
    tmp_path: Path, pixels: NDArray[np.generic], message: str
) -> None:
    path = _tiff(tmp_path / "0.tif", pixels)
    with pytest.raises(DataError, match=rf"cannot read .*0\.tif: .*{message}"):
        read_picture(path)
    with pytest.raises(DataError, match=message):
        check_depth(path)


def test_twelve_bits_in_sixteen_are_refused_but_not_a_dark_or_black_picture(tmp_path: Path) -> None:
    dark = _png(tmp_path / "dark.png", (RAMP // 16)[..., None].repeat(3, -1), 2)  # up to 4095
    warm = _png(tmp_path / "warm.png", RAMP // 64 + 30000, 0)  # of a thermal camera
    black = _png(tmp_path / "black.png", RAMP * 0, 0)
    for pair in ((dark,), (dark, _tiff(tmp_path / "0.tif", RAMP // 20)), (black, dark), (warm,)):
        with pytest.raises(DataError, match=r"16-bit values from about .* steps in 8 bits"):
            check_depth(*pair)
    check_depth(dark, _png(tmp_path / "bright.png", RAMP, 0))
    check_depth(black, black)
    assert not read_picture(black).any()
    assert read_picture(dark).max() == 15


def test_transparent_pixels_show_white_and_never_what_they_hide(tmp_path: Path) -> None:
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 8:16], alpha[:, 16:] = 51, 255
    expected = NOISE.copy()
    expected[:, :8] = 255
    expected[:, 8:16] = np.rint(NOISE[:, 8:16] * 0.2 + 255 * 0.8)
    path = tmp_path / "0.png"
    Image.fromarray(np.dstack([NOISE, alpha])).save(path)
    np.testing.assert_array_equal(read_picture(path), expected)
    Image.fromarray(np.dstack([NOISE[..., 0], alpha])).save(path)
    np.testing.assert_array_equal(read_picture(path), expected[..., :1].repeat(3, -1))
    grey = Image.fromarray(np.array([[0, 90]], np.uint8))
    for picture in (grey, grey.convert("1"), grey.convert("RGB"), grey.convert("P")):
        first = (0, 0, 0) if picture.mode == "RGB" else picture.getpixel((0, 0))
        picture.save(path, transparency=first)
        pixels = read_picture(path)
        assert (pixels[0, 0] == 255).all(), picture.mode
        assert (pixels[0, 1] != 255).any() or picture.mode == "1"
    wide = read_picture(_png(path, RAMP, 0, (b"tRNS", struct.pack(">H", 0))))
    np.testing.assert_array_equal(wide[3, :, 1], [255, *GREYS[1:]])


def test_several_frames_are_no_picture_but_smaller_copies_are_left(tmp_path: Path) -> None:
    first, second = Image.fromarray(NOISE), Image.fromarray(255 - NOISE)
    for name in ("0.gif", "0.webp", "0.png", "0.tif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        for read in (read_picture, picture_size):
            with pytest.raises(DataError, match=r"as one picture: it holds 2 frames"):
                read(tmp_path / name)
    second.encoderinfo = {"tiffinfo": {254: 1}}  # a thumbnail
    first.save(tmp_path / "1.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_picture(tmp_path / "1.tif"), NOISE)
    first.save(tmp_path / "0.jpg", format="MPO", save_all=True, append_images=[second])
    assert picture_size(tmp_path / "0.jpg") == (24, 32)


def test_broken_files(tmp_path: Path) -> None:
    for content, message in (
        (b"", "the file is empty"),
        (b"hello" * 100, "no picture that Pillow knows"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"),
    ):
        (tmp_path / "0.jpg").write_bytes(content)
        for read in (read_picture, picture_size):
            with pytest.raises(DataError, match=rf"cannot read .*0\.jpg: .*{message}"):
                read(tmp_path / "0.jpg")
    with pytest.raises(DataError, match=r"cannot read .*1\.jpg: No such file"):
        read_picture(tmp_path / "1.jpg")


def test_broken_notes_and_large_pictures_are_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "0.jpg"
    Image.fromarray(NOISE).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(9))
    expected = read_picture(path)
    Image.fromarray(NOISE).save(path)
    np.testing.assert_array_equal(read_picture(path), expected)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
    assert read_picture(path).shape == (24, 32, 3)


def test_values_of_grey_frames_stay(tmp_path: Path) -> None:
    path = tmp_path / "0.tif"
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_grey_frames(path), np.stack([RAMP, RAMP[::-1]]))
    with pytest.raises(DataError, match="whole numbers from 0 to 65535"):
        read_grey_frames(_tiff(path, RAMP.astype(np.int32) - 1))
    with pytest.raises(DataError, match="whole numbers from 0 to 65535"):
        read_grey_frames(_tiff(path, RAMP / np.float32(2)))
    Image.fromarray(NOISE).save(path)
    with pytest.raises(DataError, match="must be grey and of one size"):
        read_grey_frames(path)
