"""Video files are read as players show them; what cannot be shown so is refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from defvis.data.sources import open_source
from defvis.decoding.errors import DataError

av = pytest.importorskip("av", reason="PyAV is not installed")

# Four flat colours in the corners, and noise.
CORNERS = np.zeros((64, 96, 3), np.uint8)
CORNERS[:32, :48], CORNERS[:32, 48:] = (200, 30, 60), (40, 180, 70)
CORNERS[32:, :48], CORNERS[32:, 48:] = (20, 60, 190), (220, 220, 40)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3)).astype(np.uint8)


def _write(
    path: Path, frames: Sequence[NDArray[np.generic]], codec: str = "libx264",
    pixels: str = "yuv420p", **settings: Any,
) -> Path:  # fmt: skip
    """Encodes frames; `settings` are attributes of the encoder."""
    given = {2: "gray16le", 3: "rgb24", 4: "rgba"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=6)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            kind = given[frame.shape[2] if frame.ndim == 3 else 2]
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=kind)
            space = settings.get("colorspace")
            file.mux(stream.encode(made.reformat(format=pixels, dst_colorspace=space)))
        file.mux(stream.encode())
    return path


def _corners(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The colours in the middle of the quarters [2, 2, 3]."""
    height, width = pixels.shape[:2]
    return pixels[height // 4 :: height // 2, width // 4 :: width // 2].astype(np.int64)


def _turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Writes a display matrix into an MP4 file: (x, y) is shown at (ax + cy, bx + dy)."""
    content = bytearray(path.read_bytes())
    start = content.find(b"tkhd") + 4 + 40
    entries = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", *entries)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
     (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
)  # fmt: skip
def test_frames_are_turned_and_mirrored(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = _write(tmp_path / "film.mp4", [CORNERS] * 2)
    _turn(path, *matrix)
    a, b, c, d = matrix
    stored, shown = _corners(CORNERS), np.zeros((2, 2, 3), np.int64)
    for y, x in np.ndindex(2, 2):  # where the matrix brings each corner, about the centre
        u, v = 2 * x - 1, 2 * y - 1
        shown[(b * u + d * v + 1) // 2, (a * u + c * v + 1) // 2] = stored[y, x]
    film = open_source(path)
    assert (film.height, film.width) == ((64, 96) if a else (96, 64))
    assert film.frame(1).shape[:2] == (film.height, film.width)
    assert np.abs(_corners(film.frame(1)) - shown).max() < 6


def test_a_turn_that_no_array_can_have(tmp_path: Path) -> None:
    path = _write(tmp_path / "film.mp4", [CORNERS])
    _turn(path, 1, 1, -1, 1)
    with pytest.raises(DataError, match="it is shown turned by no multiple of 90 degrees"):
        open_source(path)


@pytest.mark.parametrize(("aspect", "width"), [("16/11", 140), ("1/2", 48), ("100/101", 96)])
def test_pixels_are_made_square(tmp_path: Path, aspect: str, width: int) -> None:
    shape = {"sample_aspect_ratio": Fraction(aspect)}
    film = open_source(_write(tmp_path / "film.mkv", [CORNERS], **shape))
    assert film.frame(0).shape == (film.height, film.width, 3) == (64, width, 3)
    assert np.abs(_corners(film.frame(0)) - _corners(CORNERS)).max() < 6
    said = "".join(film.notes)
    assert said.endswith(f"frames of 96 x 64 pixels are read as {width} x 64") == (width != 96)


@pytest.mark.parametrize(
    ("pixels", "settings"),
    [
        ("yuv420p", {"colorspace": 5, "color_range": 1}),
        ("yuv420p", {"colorspace": 1, "color_range": 1}),
        ("yuvj420p", {"colorspace": 1, "color_range": 2}),
        ("yuv420p10le", {"colorspace": 9, "color_range": 1}),
    ],
)
def test_colours_are_those_that_were_encoded(
    tmp_path: Path, pixels: str, settings: dict[str, int]
) -> None:
    film = open_source(_write(tmp_path / "film.mp4", [CORNERS], pixels=pixels, **settings))
    assert np.abs(_corners(film.frame(0)) - _corners(CORNERS)).max() < 6


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 96).astype(np.uint16)[None].repeat(64, 0)
    film = open_source(_write(tmp_path / "film.mkv", [ramp], codec="ffv1", pixels="gray16le"))
    assert np.abs(film.frame(0)[7, :, 1] - ramp[7] / 257).max() < 2


def test_brightness_for_both_kinds_of_screens_is_noted(tmp_path: Path) -> None:
    film = open_source(_write(tmp_path / "film.mkv", [CORNERS], color_trc=18))
    assert film.notes == ("brightness is HDR (HLG): colours are paler than on a screen for HDR",)
    assert film.frame(0).shape == CORNERS.shape


@pytest.mark.parametrize("transfer", [8, 16])
def test_high_dynamic_range_is_refused(tmp_path: Path, transfer: int) -> None:
    path = _write(tmp_path / "film.mkv", [CORNERS], color_trc=transfer)
    with pytest.raises(DataError, match=r"film\.mkv as video: its brightness is .* faithfully"):
        open_source(path)


@pytest.mark.parametrize(("suffix", "codec", "pixels"), [("mov", "png", "rgba"),
                         ("mov", "qtrle", "argb"), ("gif", "", "")])  # fmt: skip
def test_transparent_pixels_show_white(
    tmp_path: Path, suffix: str, codec: str, pixels: str
) -> None:
    frame = np.dstack([CORNERS, np.full((64, 96), 255, np.uint8)])
    frame[:32, :, 3] = 0
    path = tmp_path / f"film.{suffix}"
    if codec:
        _write(path, [frame] * 2, codec=codec, pixels=pixels)
    else:
        first, second = Image.fromarray(frame), Image.fromarray(frame[:, ::-1].copy())
        first.save(path, save_all=True, append_images=[second], disposal=2)
    film = open_source(path)
    assert film.length == 2
    shown = _corners(film.frame(0))
    assert (shown[0] == 255).all()
    assert np.abs(shown[1] - _corners(CORNERS)[1]).max() < 6


def test_transparency_that_the_decoder_leaves_out_is_refused(tmp_path: Path) -> None:
    frame = np.dstack([CORNERS, np.zeros((64, 96), np.uint8)])
    path = _write(tmp_path / "film.webm", [frame], codec="libvpx-vp9", pixels="yuva420p")
    with pytest.raises(DataError, match="its transparency cannot be decoded"):
        open_source(path)


@pytest.mark.parametrize("film", [False, True])
def test_a_cover_is_no_video(tmp_path: Path, film: bool) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as file:
        cover = file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = file.add_stream("aac", rate=16000, layout="mono")
        streams = [(cover, av.VideoFrame(32, 32, "yuvj420p"))]
        if film:
            video = file.add_stream("libx264", rate=6)
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            streams += [(video, av.VideoFrame.from_ndarray(CORNERS, format="rgb24"))] * 3
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.sample_rate = 16000
        for stream, frame in [*streams, (sound, tone)]:
            file.mux(stream.encode(frame))
        for stream in {id(stream): stream for stream, _ in [*streams, (sound, tone)]}.values():
            file.mux(stream.encode())
    if film:
        opened = open_source(path)
        assert (opened.length, opened.height, opened.width) == (3, 64, 96)
        assert opened.notes == ("video streams and covers that are not read: 1",)
    else:
        with pytest.raises(DataError, match="has no video stream, only a cover picture"):
            open_source(path)


def test_animations_are_videos(tmp_path: Path) -> None:
    first, second = Image.fromarray(CORNERS), Image.fromarray(CORNERS[::-1].copy())
    for suffix in ("gif", "png", *["avif"] * features.check("avif")):
        path = tmp_path / f"film.{suffix}"
        first.save(path, save_all=True, append_images=[second, first], duration=200)
        film = open_source(path)
        assert (film.length, film.rate) == (3, 5.0)
        assert np.abs(_corners(film.frame(1)) - _corners(CORNERS)[::-1]).max() < 6


@pytest.mark.parametrize(("name", "said"), [("film.mp4", "promises 40"), ("film.mkv", "promises")])
def test_a_file_that_ends_early(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=6)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in NOISE:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    whole = open_source(path)
    assert (whole.length, whole.notes) == (40, ())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    half = open_source(path)
    assert 0 < half.length < 40
    assert said in half.notes[0]
    assert f"{half.length} could be read" in half.notes[0]


def test_frames_of_several_sizes(tmp_path: Path) -> None:
    parts = [
        _write(tmp_path / f"{width}.h264", [NOISE[0, :48, :width]] * 2).read_bytes()
        for width in (64, 96)
    ]
    path = tmp_path / "film.h264"
    path.write_bytes(b"".join(parts))
    with pytest.raises(DataError, match=r"frames differ in size: \[\(48, 64\), \(48, 96\)\]"):
        open_source(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("film.mp4", b""), ("film.mp4", b"hello" * 99), ("film.webp", None)],
    ids=["empty", "text", "animated-webp"],
)
def test_what_is_no_video(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        frames = [Image.fromarray(frame) for frame in (CORNERS, CORNERS[::-1].copy())]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*{name} as video: Invalid data") as caught:
        open_source(path)
    assert ("animated WebP" in str(caught.value)) == (content is None)


def test_names_and_notes_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("12:30 Uhr.mkv")
    with av.open(f"file:{path}", "w") as file:
        file.metadata["title"] = "Title"
        stream = file.add_stream("libx264", rate=6)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(CORNERS, format="rgb24")))
        file.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"Title", b"T\xefl\xe9e"))  # Latin-1
    assert open_source(path).length == 1
    path.rename("plain.mkv")
    Path("list.mkv").write_text("ffconcat version 1.0\nfile plain.mkv\n")
    with pytest.raises(DataError, match=r"list\.mkv as video: it is a playlist"):
        open_source(Path("list.mkv"))
    shape = {"sample_aspect_ratio": Fraction(17)}
    with pytest.raises(DataError, match="pixels cannot have the shape 17:1"):
        open_source(_write(tmp_path / "wide.mkv", [CORNERS], **shape))
