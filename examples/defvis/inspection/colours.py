"""Whether colours tell the classes of a dataset apart, or are free to be exchanged in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from defvis.data import rle
from defvis.data.dataset import Track, Video, YouTubeVIS
from defvis.decoding.errors import DataError

# Objects that are looked at, and the fewest that say something, in all and of one class.
_OBJECTS, _FEWEST, _FEWEST_OF_CLASS = 400, 60, 5
# How far above chance, from 0 to 1 for always right, a guess still says too little: of all classes
# together, and of the one that is guessed best.
_LITTLE, _LITTLE_OF_BEST = 0.2, 0.5


@dataclass(frozen=True)
class ColourGuess:
    """How well the mean colour of an object says its class.

    Attributes:
        right: Share of the objects of a class whose class is that of the nearest other one by
            colour, mean over the classes.
        chance: What this share would be if colours said nothing.
        best: How far the share of the class that is guessed best is above chance: 1 if all of its
            objects are guessed, 0 at chance.
        objects: Number of objects.
    """

    right: float
    chance: float
    best: float
    objects: int

    @property
    def says_little(self) -> bool:
        """True if the objects are enough to say that colours hardly tell the classes."""
        if self.objects < _FEWEST or self.chance == 1:
            return False
        above = (self.right - self.chance) / (1 - self.chance)
        return above <= _LITTLE and self.best <= _LITTLE_OF_BEST


def guess_by_colour(data: YouTubeVIS) -> ColourGuess:
    """Guesses the class of each object from the other one that is nearest to it in mean RGB.

    Of a large dataset, 400 objects are looked at, in one frame each; what cannot be read is passed
    over, and so are classes of one object.
    """
    objects = [(video, track) for video in data.videos for track in video.objects if track.present]
    if len(objects) > _OBJECTS:
        chosen = np.random.default_rng(0).choice(len(objects), _OBJECTS, replace=False)
        objects = [objects[index] for index in sorted(chosen.tolist())]
    colours, labels = [], []
    for video, track in objects:
        try:
            colours.append(_mean_colour(video, track))
        except DataError:
            continue
        labels.append(track.label)
    own = np.array(labels, dtype=np.int64)
    classes = np.flatnonzero(np.bincount(own) > 1)
    if not len(classes):
        return ColourGuess(1.0, 1.0, 1.0, len(own))
    # The nearest one of all is the object itself, or lies where it does.
    _, nearest = KDTree(np.array(colours)).query(colours, 2)
    others = np.where(nearest[:, 0] == np.arange(len(own)), nearest[:, 1], nearest[:, 0])
    counts = np.bincount(own)[classes]
    recalls = np.array([(own[others[own == label]] == label).mean() for label in classes])
    shares = (counts - 1) / (len(own) - 1)
    above = ((recalls - shares) / np.maximum(1 - shares, 1e-9))[counts >= _FEWEST_OF_CLASS]
    return ColourGuess(
        float(recalls.mean()), float(shares.mean()), float(max(above, default=0.0)), len(own)
    )


def _mean_colour(video: Video, track: Track) -> list[float]:
    """Mean RGB of an object in the middle one of its frames."""
    frames = list(track.present)
    frame = frames[len(frames) // 2]
    colour: list[float] = video.frame(frame)[rle.decode(track.present[frame])].mean(0).tolist()
    return colour
