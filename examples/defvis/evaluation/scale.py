"""At which scale a trained model is shown frames, and what a user should know of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from defvis.config import DataConfig
from defvis.data.dataset import Frames
from defvis.data.resize_crop import Size, network_size

# Factors from which a warning is given: to the scale of training, and of enlarging a source.
_FAR, _ENLARGED = 1.5, 2.0
# Sizes that a note names.
_NAMED = 3


def with_short_side(trained: DataConfig, short_side: int) -> DataConfig:
    """The config that shows frames at another scale than training's.

    Args:
        trained: Of the run.
        short_side: Of every frame, in pixels, without a limit on the long side; 0 keeps the scale
            of the run.
    """
    if not short_side:
        return trained
    return replace(trained, short_side=short_side, long_side=0, short_sides=(), seen_short_sides=())


def scale_notes(videos: Iterable[Frames], trained: DataConfig, used: DataConfig) -> Iterator[str]:
    """What a user should know of the scale of some videos, each in a sentence.

    Args:
        videos: Any number, of any sizes.
        trained: Of the run.
        used: The same, or result of `with_short_side`.
    """
    sizes = dict.fromkeys((video.height, video.width) for video in videos)
    shown = [_Shown(size, network_size(*size, used), _seen(size, trained)) for size in sizes]
    changed = [one for one in shown if one.size != one.source]
    if changed:
        why = "as in training" if used == trained else "as --short-side says"
        yield f"{_named(changed)}, {why}"
    if used == trained and any(one.seen is None for one in shown):
        yield (
            "the run does not say at which scale it was trained: frames are shown at their own "
            "size; if training's were larger or smaller, give their short side with --short-side"
        )
    if not shown:
        return
    far = max(shown, key=lambda one: one.far)
    if far.far >= _FAR:
        side, nearest = min(far.size), far.nearest
        yield (
            f"warning: the model is shown frames with a short side of {side} pixels, {far.far:.2g} "
            f"times {'larger' if side > nearest else 'smaller'} than in training, and may find "
            f"little; --short-side {nearest} is as in training"
        )
    small = max(shown, key=lambda one: one.enlarged)
    if small.enlarged > _ENLARGED:
        yield (
            f"warning: frames of {_pixels(small.source)} pixels are enlarged "
            f"{small.enlarged:.2g} times: details that larger ones have are not there"
        )


@dataclass(frozen=True)
class _Shown:
    """Frames of one size.

    Attributes:
        source: Height and width in the video.
        size: Height and width as the model is shown them.
        seen: Smallest and largest short side in training; None if unknown.
    """

    source: Size
    size: Size
    seen: tuple[int, int] | None

    @property
    def nearest(self) -> int:
        """The short side in training that is nearest to the one shown."""
        low, high = self.seen or self.size
        return min(max(min(self.size), low), high)

    @property
    def far(self) -> float:
        """The factor from that to the one shown, or back, at least 1."""
        if self.seen is None:
            return 1.0
        side = min(self.size)
        return max(side / self.nearest, self.nearest / side)

    @property
    def enlarged(self) -> float:
        """The factor from the video to what is shown."""
        return min(self.size) / min(self.source)


def _seen(size: Size, trained: DataConfig) -> tuple[int, int] | None:
    """Smallest and largest short side that training gave, or would give, to frames of a size."""
    own = (trained.short_side,) if trained.short_side else trained.seen_short_sides
    sides = trained.short_sides or own
    if not sides:
        return None
    # A limit on the long side is one for the largest; others shrink in proportion.
    high = min(network_size(*size, replace(trained, short_side=max(sides))))
    return max(1, round(high * min(sides) / max(sides))), high


def _named(changed: Sequence[_Shown]) -> str:
    """To which size the first of some are scaled, and how many there are."""
    sizes = [(_pixels(one.source), _pixels(one.size)) for one in changed]
    text = f"frames of {sizes[0][0]} pixels are shown to the model at {sizes[0][1]}"
    text += "".join(f", of {before} at {after}" for before, after in sizes[1:_NAMED])
    return text + f", ... ({len(sizes)} sizes in all)" * (len(sizes) > _NAMED)


def _pixels(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
