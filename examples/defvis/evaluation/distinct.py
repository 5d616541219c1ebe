"""Tracks to show: one for each object, where several slots have found the same."""

from __future__ import annotations

from collections.abc import Sequence

from defvis.data import rle
from defvis.evaluation.tracks import SlotTrack

# Video IoU from which two tracks are the same object.
_SAME = 0.5


def distinct(tracks: Sequence[SlotTrack], threshold: float) -> list[SlotTrack]:
    """The tracks from a score on, without those that a higher score shows already.

    They are for people: AP counts all results, and lets the lower score find what the higher one
    may have taken for another class.

    Args:
        tracks: Of one video.
        threshold: Lowest score.

    Returns:
        In the order of `tracks`.
    """
    kept: list[tuple[SlotTrack, frozenset[int]]] = []
    for track in sorted(tracks, key=lambda track: -track.score):
        if track.score < threshold:
            break
        frames = frozenset(track.masks)
        if not any(_is_same(track, other, frames & seen) for other, seen in kept):
            kept.append((track, frames))
    return [track for track in tracks if any(track is other for other, _ in kept)]


def _is_same(a: SlotTrack, b: SlotTrack, frames: frozenset[int]) -> bool:
    shared = sum(rle.intersection(a.masks[frame], b.masks[frame]) for frame in frames)
    if not shared:  # As most pairs are.
        return False
    areas = sum(rle.area(mask) for track in (a, b) for mask in track.masks.values())
    return shared >= _SAME * (areas - shared)
