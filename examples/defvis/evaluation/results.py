"""Reads and checks a list of predictions in the format of the YouTube-VIS server (results.json)."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defvis.data import rle
from defvis.data.dataset import Video, YouTubeVIS
from defvis.data.read_json import read_json
from defvis.data.rle import RLE
from defvis.data.values import integer, shown

_FIELDS = ("video_id", "category_id", "score", "segmentations")


class ResultError(ValueError):
    """A results list breaks a rule; the message names the entry."""


@dataclass(frozen=True)
class Detection:
    """One checked entry of a results list.

    Attributes:
        score: A finite number.
        masks: By frame, of the frames in which the object is present.
        areas: Pixels of these masks, in the same order.
    """

    score: float
    masks: Mapping[int, RLE]
    areas: tuple[int, ...]


def load_results(path: Path) -> list[Any]:
    """Reads a results.json.

    Raises:
        ResultError: If the file cannot be read or does not hold a list.
    """
    results: list[Any] = read_json(path, list, ResultError)
    return results


def check_results(
    data: YouTubeVIS, results: Sequence[Any]
) -> defaultdict[tuple[int, int], list[Detection]]:
    """Checks every entry and sorts them by (video id, class index).

    Args:
        data: The dataset the results are about.
        results: Entries with video_id, category_id, score and segmentations (RLE or null, one
            per frame of the video). An entry with first_frame has the segmentations of this and
            the following frames alone, as many as it likes; in the others the object is absent.

    Raises:
        ResultError: If an entry breaks a rule.
    """
    videos = {video.id: video for video in data.videos}
    labels = {category_id: label for label, category_id in enumerate(data.category_ids)}
    detections: defaultdict[tuple[int, int], list[Detection]] = defaultdict(list)
    for index, entry in enumerate(results):
        place = f"results[{index}]"
        if not isinstance(entry, Mapping):
            raise ResultError(f"{place} must be an object, got {shown(entry)}")
        missing = [name for name in _FIELDS if name not in entry]
        if missing:
            raise ResultError(f"{place} lacks {missing[0]}{_reason(entry)}")
        video_id, category_id = (integer(entry, name, place, ResultError) for name in _FIELDS[:2])
        if video_id not in videos:
            raise ResultError(f"{place}: there is no video {video_id}")
        if category_id not in labels:
            raise ResultError(f"{place}: there is no category {category_id}")
        score = entry["score"]
        if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
            raise ResultError(f"{place}: score must be a finite number, got {shown(score)}")
        masks, areas = _masks(entry, videos[video_id], place)
        detections[video_id, labels[category_id]].append(Detection(float(score), masks, areas))
    return detections


def _reason(entry: Mapping[str, Any]) -> str:
    if "segmentation" in entry or "image_id" in entry:
        return ": it is of COCO's single images"
    if "score" not in entry and "segmentations" in entry:
        return ": it is an annotation, not a prediction"
    return ""


def _masks(
    entry: Mapping[str, Any], video: Video, place: str
) -> tuple[dict[int, RLE], tuple[int, ...]]:
    segmentations = entry["segmentations"]
    first, wanted = 0, f"one entry per frame of video {video.id}, {video.length}"
    if entry.get("first_frame") is not None:
        first = integer(entry, "first_frame", place, ResultError)
        if not 0 <= first < video.length:
            raise ResultError(f"{place}: first_frame must be 0 to {video.length - 1}, got {first}")
        wanted = f"at most {video.length - first} entries from first_frame {first} on"
    if not isinstance(segmentations, list):
        raise ResultError(f"{place}: segmentations must have {wanted}, got {shown(segmentations)}")
    longest = video.length - first
    whole = entry.get("first_frame") is None
    if len(segmentations) > longest or (whole and len(segmentations) < longest):
        raise ResultError(f"{place}: segmentations must have {wanted}, got {len(segmentations)}")
    for frame, segmentation in enumerate(segmentations, start=first):
        if isinstance(segmentation, list) and segmentation:
            raise ResultError(
                f"{place}, frame {frame}: predictions must be RLE, not polygons, "
                f"got {shown(segmentation)}"
            )
    try:
        masks, areas = rle.to_rles(segmentations, video.height, video.width, place, first)
    except ValueError as error:
        raise ResultError(str(error)) from error
    return masks, tuple(areas.values())
