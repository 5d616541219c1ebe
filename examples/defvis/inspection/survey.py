"""What a dataset is like, from its annotations alone: how many, how long, how large."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defvis.data import rle
from defvis.data.dataset import Video, YouTubeVIS
from defvis.data.resize_crop import Size
from defvis.data.rle import RLE

# Masks whose pixels are counted. More do not change a percentile by much, but take seconds.
_MEASURED = 20_000


@dataclass(frozen=True)
class Spread:
    """How numbers are spread; all 0 where there are none.

    Attributes:
        least: The smallest.
        low: The 5th percentile.
        median: The 50th.
        high: The 95th.
        most: The largest.
    """

    least: float
    low: float
    median: float
    high: float
    most: float


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs.

    Attributes:
        name: Of the class.
        objects: Of it, without crowd regions and objects that have no mask.
        videos: In which one of them is.
    """

    name: str
    objects: int
    videos: int


@dataclass(frozen=True)
class Survey:
    """What a dataset is like. Objects are tracks with a mask in at least one frame, without crowd.

    Attributes:
        videos: Number of videos.
        frames: In all videos.
        objects: In all videos.
        crowd: Crowd regions, which training leaves out.
        maskless: Tracks, not crowd, without a mask in any frame, which training leaves out.
        masks: Of the objects, in all frames.
        videos_without_objects: Number of them.
        lengths: Frames of a video.
        sizes: Height and width of frames in pixels, and the videos of that size; the most frequent
            first.
        short_sides: The smaller of height and width of a video, in pixels.
        objects_per_video: Counted over whole videos, also those without any.
        object_sizes: Square root of a mask's area, as a share of the short side of its frame. Of
            the masks of a large dataset, 20,000 are measured, the same each time.
        presence: Share of the frames of its video in which an object has a mask, mean over the
            frames of all objects; 0 without objects.
        classes: By class index.
    """

    videos: int
    frames: int
    objects: int
    crowd: int
    maskless: int
    masks: int
    videos_without_objects: int
    lengths: Spread
    sizes: tuple[tuple[Size, int], ...]
    short_sides: Spread
    objects_per_video: Spread
    object_sizes: Spread
    presence: float
    classes: tuple[ClassCount, ...]


def survey(data: YouTubeVIS) -> Survey:
    """Counts and measures without opening a picture: 10,000 videos take about a second."""
    objects, videos_of = Counter[int](), Counter[int]()
    crowd = maskless = places = 0
    per_video: list[int] = []
    masks: list[RLE] = []
    short_sides: list[int] = []  # Of the frame of each mask.
    for video in data.videos:
        labels: list[int] = []
        for track in video.tracks:
            own = [mask for mask in track.masks if mask is not None]
            if track.is_crowd:
                crowd += 1
            elif not own:
                maskless += 1
            else:
                labels.append(track.label)
                places += video.length
                masks += own
                short_sides += [_short_side(video)] * len(own)
        per_video.append(len(labels))
        objects.update(labels)
        videos_of.update(set(labels))
    sizes = Counter((video.height, video.width) for video in data.videos)
    return Survey(
        videos=len(data.videos),
        frames=sum(video.length for video in data.videos),
        objects=objects.total(),
        crowd=crowd,
        maskless=maskless,
        masks=len(masks),
        videos_without_objects=per_video.count(0),
        lengths=_spread([video.length for video in data.videos]),
        sizes=tuple(sizes.most_common()),
        short_sides=_spread([_short_side(video) for video in data.videos]),
        objects_per_video=_spread(per_video),
        object_sizes=_spread(_relative_sizes(masks, short_sides)),
        presence=len(masks) / places if places else 0.0,
        classes=tuple(
            ClassCount(name, objects[label], videos_of[label])
            for label, name in enumerate(data.category_names)
        ),
    )


def most_at_once(video: Video, frames: int) -> int:
    """The most objects, without crowd, that any `frames` consecutive frames of a video show."""
    tracks = video.objects
    if not tracks:
        return 0
    seen = np.array([[mask is not None for mask in track.masks] for track in tracks])
    sums = np.pad(seen.cumsum(axis=1), ((0, 0), (1, 0)))
    frames = min(frames, video.length)
    return int(((sums[:, frames:] - sums[:, :-frames]) > 0).sum(axis=0).max())


def _short_side(video: Video) -> int:
    return min(video.height, video.width)


def _relative_sizes(masks: Sequence[RLE], short_sides: Sequence[int]) -> Sequence[float]:
    """Square roots of areas as shares of the short side; of many masks, of some drawn at random."""
    chosen: Sequence[int] = range(len(masks))
    if len(masks) > _MEASURED:
        # Not every n-th: n may be the number of frames of all videos.
        chosen = np.random.default_rng(0).choice(len(masks), _MEASURED, replace=False).tolist()
    return [math.sqrt(rle.area(masks[index])) / short_sides[index] for index in chosen]


def _spread(numbers: Sequence[float]) -> Spread:
    if not numbers:
        return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    return Spread(*map(float, np.percentile(numbers, (0, 5, 50, 95, 100))))
