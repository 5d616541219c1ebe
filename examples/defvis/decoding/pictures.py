"""Decodes pictures, as viewers show them: the one place that does.

Pictures are turned as their EXIF orientation says, grey values of more than 8 bits are scaled, and
transparent pixels lie on white. Colour profiles are not applied. What cannot be shown faithfully in
8 bits is refused.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from defvis.decoding.errors import DataError

# Names of picture files that Pillow decodes.
SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff",
    ".gif", ".avif", ".jp2", ".j2k", ".tga", ".pbm", ".pgm", ".ppm", ".pnm",
))  # fmt: skip
# Raised by Pillow for broken files, impossible file names and sizes above its limit.
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError,
    AttributeError, RuntimeError, MemoryError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
_ORIENTATION, _SUBFILE_TYPE, _BITS, _PHOTOMETRIC = 0x0112, 254, 258, 262
# Orientations that exchange height and width.
_SIDEWAYS = (5, 6, 7, 8)
_WIDE_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
# How many steps of 16 bits are one of 8; and so few of those that almost nothing would be seen.
_STEP, _FEWEST = 257, 16
# Where a PNG may say its orientation, and that it does so behind its pixels.
_PNG_METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_PNG_TAIL = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_TAIL_BYTES = 2**17


class SeveralFrames(DataError):
    """A file of several frames where one picture is expected."""


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Decodes a picture to RGB [H, W, 3], as it is shown.

    Raises:
        DataError: If the file is missing or broken, or has no faithful form in 8 bits: floats
            outside 0 to 1, 32-bit integers, several frames.
    """
    with _opened(path) as image:
        image.load()
        orientation = _orientation(image)  # Now: a TIFF has been turned by Pillow.
        pixels = _eight_bits(image)
    return turned(pixels, orientation)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is shown, in pixels, from its header alone.

    Raises:
        DataError: If the file is missing or broken, or has several frames.
    """
    with _opened(path) as image:
        height, width, sideways = image.height, image.width, _sideways(image)
    return (width, height) if sideways else (height, width)


def check_picture(path: Path, height: int, width: int) -> None:
    """Looks at a picture's header.

    A size that is that of the stored pixels before they are turned is refused as well: whether the
    masks were drawn on the stored or on the shown picture cannot be told for a half turn, and one
    rule must hold for all pictures of a dataset.

    Args:
        path: The file.
        height: Pixels that it must have as shown.
        width: Likewise.

    Raises:
        DataError: If the file cannot be read by `read_picture`, or has another size.
    """
    with _opened(path) as image:
        stored, sideways = (image.height, image.width), _sideways(image)
    shown = stored[::-1] if sideways else stored
    if shown != (height, width):
        message = f"{path} must be {width} x {height} pixels, got {shown[1]} x {shown[0]}"
        if stored == (height, width):
            message += (
                ": it is shown turned by its EXIF orientation; if the masks were drawn on the "
                "unturned picture, remove the orientation from all pictures"
            )
        raise DataError(message)


def check_depth(*paths: Path) -> None:
    """Decodes those pictures of a video that have more than 8 bits per value, to see what is shown.

    Raises:
        DataError: If one of them has no faithful form in 8 bits, or all have 16 bits and use a
            small part of the range, as 12-bit and thermal cameras do. A single picture may be
            flat, and all may be of one value.
    """
    lowest, highest = [], []
    for path in paths:
        with _opened(path) as image:
            wide, deep = _wide(image), _deep(image)
        if deep:
            pixels = read_picture(path)
        if not wide:
            return
        lowest.append(int(pixels.min()))
        highest.append(int(pixels.max()))
    greys = max(highest) - min(lowest)
    if 0 < greys <= _FEWEST:
        raise DataError(
            f"cannot read {paths[0]}: 16-bit values from about {_STEP * min(lowest)} to "
            f"{_STEP * max(highest)} of 65535 are {greys + 1} steps in 8 bits; stretch the values "
            "of all frames alike"
        )


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns [H, W, C] as it is shown; `orientation` as in EXIF, 1 to 8; others leave it."""
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA [H, W, 4] to RGB [H, W, 3]: what is transparent shows white, as in saved JPEG files."""
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def read_grey_frames(path: Path) -> NDArray[np.uint16]:
    """Reads the values of a file of several grey frames, such as a TIFF, unscaled to [T, H, W].

    Raises:
        DataError: If the file is missing or broken, has colours or frames of different sizes, or
            values that are not whole numbers from 0 to 65535.
    """
    with _decoding(path), Image.open(path) as image:
        frames = [np.asarray(frame) for frame in ImageSequence.Iterator(image)]
    if len({frame.shape for frame in frames}) > 1 or frames[0].ndim != 2:
        raise DataError(f"cannot read {path}: frames must be grey and of one size")
    values = np.stack(frames)
    whole = values.astype(np.uint16)
    if not np.array_equal(values, whole):
        raise DataError(f"cannot read {path}: values must be whole numbers from 0 to 65535")
    return whole


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Names the file in errors; keeps Pillow's warnings quiet, as what they are of is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except SeveralFrames:
            raise
        except _UNREADABLE as error:
            raise DataError(f"cannot read {path}: {_reason(path, error)}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a picture of one frame."""
    with _decoding(path), Image.open(path) as image:
        frames = _count_frames(image)
        if frames > 1:
            raise SeveralFrames(
                f"cannot read {path} as one picture: it holds {frames} frames; save each as a file"
            )
        yield image


def _reason(path: Path, error: BaseException) -> str:
    """What to say of a file that Pillow could not read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if not isinstance(error, Image.UnidentifiedImageError):
        return str(error) or type(error).__name__
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(12)
        if not head:
            return "the file is empty"
        if head[4:8] == b"ftyp":
            return "it is a HEIC picture or a video; save it as JPEG or PNG"
    return "it is no picture that Pillow knows"


def _count_frames(image: Any) -> int:
    """Frames of an animation, pages of a TIFF; not the smaller copies that some files carry."""
    frames = int(getattr(image, "n_frames", 1))
    if frames == 1 or image.format == "MPO":  # A photo of a phone, with a depth map or the like.
        return 1
    if image.format == "TIFF":
        pages = 0
        for frame in range(frames):
            image.seek(frame)
            pages += not image.tag_v2.get(_SUBFILE_TYPE, 0) & 1
        image.seek(0)
        return pages
    return frames


def _orientation(image: Any) -> int:
    """The EXIF orientation; 1 if there is none."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _UNREADABLE:  # Broken notes do not break the picture.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _sideways(image: Any) -> bool:
    """Whether a picture that is not yet loaded is shown with height and width exchanged."""
    if image.format == "TIFF":
        return False  # Pillow states the size of the turned picture.
    if image.format == "PNG" and not any(name in image.info for name in _PNG_METADATA):
        # Pillow would decode the picture, to see what comes behind the pixels.
        image.fp.seek(0, os.SEEK_END)
        image.fp.seek(max(0, image.fp.tell() - _TAIL_BYTES))
        tail = image.fp.read()
        if not any(name in tail for name in _PNG_TAIL):
            return False
        with Image.open(image.filename) as again:
            return _orientation(again) in _SIDEWAYS
    return _orientation(image) in _SIDEWAYS


def _wide(image: Any) -> bool:
    """Whether a picture that is not yet loaded has 16 bits per value."""
    return image.mode in _WIDE_GREY or any(";16" in str(tile[3]) for tile in image.tile)


def _deep(image: Any) -> bool:
    """Whether a picture that is not yet loaded has values of more than 8 bits."""
    return image.mode in ("I", "F") or _wide(image)


def _eight_bits(image: Any) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of a loaded picture, not yet turned."""
    if image.mode in _WIDE_GREY or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = _sixteen_bits(image)
        grey = ((values + _STEP // 2) // _STEP).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "F":
        floats = np.asarray(image)
        if not ((floats >= 0) & (floats <= 1)).all():
            raise ValueError("its values cannot be shown faithfully: floats must be from 0 to 1")
        return np.repeat(np.rint(255 * floats).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "I":
        raise ValueError(
            "its values cannot be shown faithfully: white is unknown among integers of this depth; "
            "scale the values of all frames alike to 8 or 16 bits without sign"
        )
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _sixteen_bits(image: Any) -> NDArray[np.int64]:
    """Grey values [H, W], 0 black and 65535 white."""
    values = np.asarray(image).astype(np.int64)
    if image.format == "TIFF":
        if image.tag_v2.get(_BITS) == (12,):
            values = values * 65535 // 4095
        if image.tag_v2.get(_PHOTOMETRIC) == 0:  # Zero is white.
            values = 65535 - values
    return values
