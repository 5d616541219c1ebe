"""How one decoded frame of a video is shown: its size, its turn, its pixels as RGB.

Frames are turned and mirrored as the file says, non-square pixels are made square, transparent
pixels lie on white, more than 8 bits are scaled to 8, and colours are converted as the file states
them (BT.601 if it does not). High dynamic range (PQ) is refused: how to show it is a matter of
taste.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defvis.decoding.errors import DataError
from defvis.decoding.pictures import on_white, turned

# Transfer functions whose values a screen does not show as they are (ITU-T H.273).
_NOT_SHOWN = {8: "linear", 9: "logarithmic", 10: "logarithmic", 16: "HDR (PQ)", 17: "SMPTE 428"}
# HDR that is made to be shown on ordinary screens too, in paler colours (ITU-R BT.2100).
HLG = 18
# EXIF's number of each display matrix, from where it brings right and down of the stored frame.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip
# Pixels that differ less from squares come from rounding; more than sixteenfold, from damage.
_SQUARE, _LONGEST = 0.01, 16


def square_width(width: int, aspect: Fraction) -> int:
    """The width of stored frames after pixels of this width / height were made square.

    Raises:
        DataError: If no camera has such pixels.
    """
    if abs(aspect - 1) <= _SQUARE:
        return width
    if not 1 <= _LONGEST * aspect <= _LONGEST**2:
        raise DataError(f"pixels cannot have the shape {aspect.numerator}:{aspect.denominator}")
    return max(1, round(width * aspect))


def shown_size(frame: Any, aspect: Fraction) -> tuple[int, int]:
    """Height and width of a frame (`av.VideoFrame`) as shown.

    Raises:
        DataError: If it cannot be shown faithfully.
    """
    if frame.color_trc in _NOT_SHOWN:
        raise DataError(
            f"its brightness is {_NOT_SHOWN[frame.color_trc]}, which 8 bits cannot show "
            "faithfully; convert it to standard dynamic range, for example with FFmpeg's filters "
            "zscale and tonemap"
        )
    size = frame.height, square_width(frame.width, aspect)
    return size[::-1] if _orientation(frame) >= 5 else size


def shown_pixels(frame: Any, aspect: Fraction) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of a frame (`av.VideoFrame`) that has a `shown_size`."""
    alpha = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    pixels = np.asarray(
        frame.to_ndarray(
            format="rgba" if alpha else "rgb24", width=square_width(frame.width, aspect)
        ),
        dtype=np.uint8,
    )
    if alpha:
        pixels = on_white(pixels)
    return turned(pixels, _orientation(frame))


def _orientation(frame: Any) -> int:
    """How a frame is turned to be shown, as EXIF numbers it."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    entries = struct.unpack("=9i", bytes(matrix))
    turn = [entries[index] for index in (0, 1, 3, 4)]
    largest = max(map(abs, turn))
    if largest == 0:
        return 1
    # Entries may also stretch: the shape of the pixels says by how much.
    signs = tuple(0 if abs(x) < 0.01 * largest else (1 if x > 0 else -1) for x in turn)
    if signs not in _ORIENTATIONS:
        raise DataError("it is shown turned by no multiple of 90 degrees")
    return _ORIENTATIONS[signs]
