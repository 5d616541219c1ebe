"""What decodes pictures and videos."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from defvis.decoding.errors import DataError
from defvis.decoding.pictures import check_picture, picture_size, read_picture
from defvis.decoding.videos import VideoFile

_LARGEST = 10**6  # pixels that a header may promise: more of them only take time
# Of these Pillow's own turning and conversion is right.
_PLAIN = ("RGB", "L", "P", "CMYK", "YCbCr", "1")


def picture(data: bytes, folder: Path) -> None:
    """A picture is refused or read as large as announced, and as Pillow reads it."""
    path = folder / "picture"
    path.write_bytes(data)
    try:
        height, width = picture_size(path)
    except DataError:
        height = width = 0
    if height * width > _LARGEST:
        return
    try:
        pixels = read_picture(path)
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape == (height, width, 3)
    check_picture(path, height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = _by_pillow(path)
    assert shown is None or np.array_equal(pixels, shown)


def _by_pillow(path: Path) -> NDArray[np.uint8] | None:
    """What Pillow alone makes of a picture; None where its way is not faithful."""
    with Image.open(path) as image:
        deep = any("16" in str(tile[3]) for tile in image.tile)
        if deep or image.mode not in _PLAIN or image.info.get("transparency") is not None:
            return None
        try:
            shown = ImageOps.exif_transpose(image)
        except Exception:  # It stumbles over broken notes.
            return None
        return np.asarray(shown.convert("RGB"))


def video(data: bytes, folder: Path) -> None:
    """A video is refused, or has as many frames of the size as it says."""
    path = folder / "video.mp4"
    path.write_bytes(data)
    try:
        source = VideoFile(path, 1, 2)
    except DataError:
        return
    assert source.length > 0
    assert source.rate >= 0
    try:
        first, last, again = (source.frame(index) for index in (0, source.length - 1, 0))
    except DataError:
        return
    for pixels in (first, last):
        assert pixels.dtype == np.uint8
        assert pixels.shape == (source.height, source.width, 3)
    assert (first == again).all()


TARGETS = {"picture": picture, "video": video}
