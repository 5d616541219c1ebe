"""Outlines of masks as lists of numbers."""

from __future__ import annotations

from typing import Any

from defvis.data.values import shown

# Pixels along the outlines of a mask: pycocotools needs some fifty bytes for each.
_LONGEST = 4_000_000


def count_slivers(segmentation: Any) -> int:
    """How many polygons of a segmentation have fewer than three corners."""
    return sum(map(_is_sliver, segmentation)) if isinstance(segmentation, list) else 0


def without_slivers(polygons: list[Any], height: int, width: int) -> list[list[float]]:
    """The polygons of a frame that have an area: those of three corners and more.

    Args:
        polygons: Flat lists x0, y0, x1, y1, ... in pixels.
        height: Height of the frame.
        width: Width of the frame.

    Raises:
        ValueError: If they have another form, or lie far outside the frame.
    """
    if polygons and not any(isinstance(polygon, list) for polygon in polygons):
        raise ValueError(
            "polygons must be a list of flat lists [[x0, y0, x1, y1, ...], ...], got a list of "
            f"{shown(polygons[0])}, ..."
        )
    if len(polygons) > 2 and all(isinstance(point, list) and len(point) == 2 for point in polygons):
        raise ValueError(
            "polygons must be flat lists [[x0, y0, x1, y1, ...], ...], got a list of points "
            f"{shown(polygons[:2])}"
        )
    for polygon in polygons:
        _check(polygon, height, width)
    kept = [polygon for polygon in polygons if not _is_sliver(polygon)]
    length = sum(map(_length, kept))
    if length > _LONGEST:
        raise ValueError(
            f"outlines of polygons must be at most {_LONGEST} pixels long, got {length:.0f}"
        )
    return kept


def _length(polygon: list[float]) -> float:
    before = polygon[-2:] + polygon[:-2]
    return sum(abs(there - here) for there, here in zip(polygon, before, strict=True))


def _is_sliver(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) < 6


def _check(polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, list):
        raise ValueError(f"a polygon must be a list, got {shown(polygon)}")
    for number in polygon:
        if type(number) not in (int, float):
            raise ValueError(f"a polygon must hold numbers, got {shown(number)}")
    if len(polygon) % 2:
        raise ValueError(f"a polygon must hold pairs x, y, got {len(polygon)} numbers")
    # pycocotools draws every pixel of the outline, however far outside.
    for name, numbers, size in (("x", polygon[::2], width), ("y", polygon[1::2], height)):
        for number in numbers:
            if not -size <= number <= 2 * size:
                raise ValueError(
                    f"{name} of a polygon must be {-size} to {2 * size}, got {shown(number)}"
                )
