"""Decodes pictures: the one place that does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defvis.data.errors import DataError

# Raised by Pillow for broken files, impossible file names and sizes above its limit.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Decodes a picture to RGB [H, W, 3].

    Raises:
        DataError: If the file is missing or broken.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except _UNREADABLE as error:
        raise DataError(f"cannot read {path}: {error}") from error


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture in pixels, from its header alone.

    Raises:
        DataError: If the file is missing or broken.
    """
    try:
        with Image.open(path) as image:
            return int(image.height), int(image.width)
    except _UNREADABLE as error:
        raise DataError(f"cannot read {path}: {error}") from error
