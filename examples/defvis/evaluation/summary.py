"""What was found in a video, and what would be at another threshold, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import ROUND_FLOOR, Decimal

from defvis.evaluation.tracks import SlotTrack


def summary(
    tracks: Sequence[SlotTrack], names: Sequence[str], threshold: float, length: int
) -> Iterator[str]:
    """Lines on the objects of a video.

    Args:
        tracks: Every track that has a mask.
        names: Of the classes.
        threshold: Lowest score that counts.
        length: Frames of the video.
    """
    if not tracks:
        yield (
            f"{length} frames, nothing was found: no mask in any frame, at any --threshold; the "
            "training may have been too short, or objects have another scale there "
            "(see --short-side)"
        )
        return
    seen = [track for track in tracks if track.score >= threshold]
    objects = "1 object" if len(seen) == 1 else f"{len(seen)} objects"
    title = f"{length} frames, {objects} with a score from {threshold:g}"
    best = max(tracks, key=lambda track: track.score)
    if not seen:
        yield (
            f"{title}; the best is a {names[best.label]} with {best.score:.2g} {_where(best)}: "
            f"--threshold {threshold_for(best.score)} shows it"
        )
        return
    yield f"{title}:"
    for track in seen:
        yield f"  #{track.identity}: {names[track.label]} {track.score:.2f}, {_where(track)}"


def threshold_for(score: float) -> str:
    """The largest number of one digit that is not above a score from 0 to 1, such as 0.1 or 0.03.

    Below 0.0001 it is 0.
    """
    exact = Decimal(score)  # Rounding must not go above it.
    if exact < Decimal("0.0001"):
        return "0"
    return f"{exact.quantize(Decimal((0, (1,), exact.adjusted())), ROUND_FLOOR):f}"


def _where(track: SlotTrack) -> str:
    frames = list(track.masks)
    if len(frames) == 1:
        return f"in frame {frames[0]}"
    if len(frames) == frames[-1] - frames[0] + 1:
        return f"in frames {frames[0]} to {frames[-1]}"
    return f"in {len(frames)} frames from {frames[0]} to {frames[-1]}"
