"""Where the results and the objects of a video overlap: computed once, for all that is measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from defvis.data import rle
from defvis.data.dataset import Video, YouTubeVIS
from defvis.data.rle import RLE
from defvis.evaluation.results import Detection, check_results

# Results of one video and class that count, those with the highest scores.
MOST_RESULTS = 100
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Overlaps:
    """What two lists of tracks share, as one entry per pair of tracks and frame that share pixels.

    Attributes:
        first: Index of the track of the first list, [N].
        second: Index of the track of the second list, [N].
        frames: Frame, [N].
        shared: Pixels that both masks have, [N].
        first_pixels: Pixels of the first track's mask in this frame, [N].
        second_pixels: Pixels of the second track's mask in this frame, [N].
        first_areas: Pixels of each track of the first list, summed over its frames.
        second_areas: Likewise of the second list.
    """

    first: Indices
    second: Indices
    frames: Indices
    shared: Indices
    first_pixels: Indices
    second_pixels: Indices
    first_areas: Indices
    second_areas: Indices

    @property
    def shared_pixels(self) -> Indices:
        """Pixels that each pair shares, summed over the frames, [first, second]."""
        pairs = np.zeros((len(self.first_areas), len(self.second_areas)), dtype=np.int64)
        np.add.at(pairs, (self.first, self.second), self.shared)
        return pairs

    @property
    def video_iou(self) -> NDArray[np.float64]:
        """Sum of intersections over sum of unions, [first, second]; 0 where both are empty."""
        shared = self.shared_pixels
        union = self.first_areas[:, None] + self.second_areas - shared
        iou: NDArray[np.float64] = shared / np.maximum(union, 1)
        return iou

    @property
    def frame_iou(self) -> NDArray[np.float64]:
        """IoU of each entry's two masks, [N]."""
        union = self.first_pixels + self.second_pixels - self.shared
        iou: NDArray[np.float64] = self.shared / union
        return iou


def find_overlaps(
    first: Sequence[Mapping[int, RLE]], second: Sequence[Mapping[int, RLE]]
) -> Overlaps:
    """Compares every track of one list with every track of another.

    Args:
        first: Masks by frame, none of them without a pixel.
        second: Likewise, of frames of the same size.
    """
    in_frame = [defaultdict(list), defaultdict(list)]  # type: list[defaultdict[int, list[int]]]
    areas = []
    for tracks, places in zip((first, second), in_frame, strict=True):
        sums = np.zeros(len(tracks), dtype=np.int64)
        for index, masks in enumerate(tracks):
            for frame in masks:
                places[frame].append(index)
            sums[index] = sum(map(rle.area, masks.values()))
        areas.append(sums)
    entries = [np.zeros((6, 0), dtype=np.int64)]
    for frame in sorted(in_frame[0].keys() & in_frame[1].keys()):
        rows, columns = (np.array(places[frame]) for places in in_frame)
        a = [first[index][frame] for index in rows.tolist()]
        b = [second[index][frame] for index in columns.tolist()]
        # One by one: for a list of 256 masks pycocotools' area overflows.
        area_a, area_b = (np.array([rle.area(mask) for mask in masks]) for masks in (a, b))
        # With the sign of a crowd, pycocotools divides the shared pixels by those of the first.
        shared = np.rint(coco_mask.iou(a, b, [1] * len(b)) * area_a[:, None]).astype(np.int64)
        at = np.nonzero(shared)
        pairs = rows[at[0]], columns[at[1]], np.full(len(at[0]), frame)
        entries.append(np.stack((*pairs, shared[at], area_a[at[0]], area_b[at[1]])))
    return Overlaps(*np.concatenate(entries, axis=1), *areas)


@dataclass(frozen=True)
class Comparison:
    """The results of one video and its objects.

    Attributes:
        video: The video; its tracks are the objects, crowds among them.
        detections: Of each class the MOST_RESULTS with the highest scores; by class, then by
            falling score, results of one score in the order in which they were given.
        labels: Class index of each, [D].
        scores: Score of each, [D].
        tracks: Index of each one's masks in `masks`, [D]: results of several classes often have
            the same masks.
        masks: Different tracks of masks, [M].
        overlaps: Of `masks` with the objects.
        iou: Video IoU of the detections with the objects, [D, G].
    """

    video: Video
    detections: tuple[Detection, ...]
    labels: Indices
    scores: NDArray[np.float64]
    tracks: Indices
    masks: tuple[Mapping[int, RLE], ...]
    overlaps: Overlaps
    iou: NDArray[np.float64]

    @property
    def truth_labels(self) -> Indices:
        """Class index of each object, [G]."""
        return np.array([track.label for track in self.video.tracks], dtype=np.int64)

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """Which objects are crowds, [G]."""
        return np.array([track.is_crowd for track in self.video.tracks], dtype=bool)


def compare(data: YouTubeVIS, results: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Compares the results of all videos with their objects.

    Args:
        data: Ground truth.
        results: Entries as `results.check_results` takes them.

    Returns:
        One comparison per video, by video id.

    Raises:
        ResultError: If an entry breaks a rule.
    """
    detections = check_results(data, results)
    return [
        _compare_video(video, [detections[video.id, label] for label in range(data.num_classes)])
        for video in sorted(data.videos, key=lambda video: video.id)
    ]


def _compare_video(video: Video, by_class: Sequence[Sequence[Detection]]) -> Comparison:
    kept: list[Detection] = []
    labels: list[int] = []
    for label, detections in enumerate(by_class):
        best = sorted(detections, key=lambda one: -one.score)[:MOST_RESULTS]
        kept += best
        labels += [label] * len(best)
    numbers: dict[tuple[tuple[int, bytes], ...], int] = {}
    masks: list[Mapping[int, RLE]] = []
    tracks = []
    for detection in kept:
        key = tuple((frame, mask["counts"]) for frame, mask in detection.masks.items())
        if key not in numbers:
            numbers[key] = len(masks)
            masks.append(detection.masks)
        tracks.append(numbers[key])
    overlaps = find_overlaps(masks, [track.present for track in video.tracks])
    which = np.array(tracks, dtype=np.int64)
    return Comparison(
        video,
        tuple(kept),
        np.array(labels, dtype=np.int64),
        np.array([detection.score for detection in kept], dtype=np.float64),
        which,
        tuple(masks),
        overlaps,
        overlaps.video_iou[which],
    )
