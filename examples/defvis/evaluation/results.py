"""Reads and checks a list of predictions in the format of the YouTube-VIS server (results.json)."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defvis.data import rle
from defvis.data.read_json import read_json
from defvis.data.rle import RLE
from defvis.data.ytvis import Video, YouTubeVIS

_FIELDS = ("video_id", "category_id", "score", "segmentations")


class ResultError(ValueError):
    """A results list breaks a rule; the message names the entry."""


@dataclass(frozen=True)
class Detection:
    """One checked entry of a results list."""

    score: float
    masks: tuple[RLE | None, ...]


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
            per frame of the video).

    Raises:
        ResultError: If an entry breaks a rule.
    """
    videos = {video.id: video for video in data.videos}
    labels = {category_id: label for label, category_id in enumerate(data.category_ids)}
    detections: defaultdict[tuple[int, int], list[Detection]] = defaultdict(list)
    for index, entry in enumerate(results):
        place = f"results[{index}]"
        if not isinstance(entry, Mapping):
            raise ResultError(f"{place} must be an object, got {type(entry).__name__}")
        missing = [name for name in _FIELDS if name not in entry]
        if missing:
            raise ResultError(f"{place} lacks {missing[0]}")
        video_id, category_id = (_id(entry, name, place) for name in _FIELDS[:2])
        if video_id not in videos:
            raise ResultError(f"{place}: there is no video {video_id}")
        if category_id not in labels:
            raise ResultError(f"{place}: there is no category {category_id}")
        score = entry["score"]
        if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
            raise ResultError(f"{place}: score must be a finite number, got {score!r}")
        masks = _masks(entry["segmentations"], videos[video_id], place)
        detections[video_id, labels[category_id]].append(Detection(float(score), masks))
    return detections


def _id(entry: Mapping[str, Any], name: str, place: str) -> int:
    number = entry[name]
    if type(number) is not int:
        raise ResultError(f"{place}: {name} must be an integer, got {number!r}")
    return number


def _masks(segmentations: Any, video: Video, place: str) -> tuple[RLE | None, ...]:
    if not isinstance(segmentations, list) or len(segmentations) != video.length:
        got = len(segmentations) if isinstance(segmentations, list) else segmentations
        raise ResultError(
            f"{place}: segmentations must have one entry per frame of video {video.id}, "
            f"{video.length}, got {got!r}"
        )
    masks = []
    for frame, mask in enumerate(segmentations):
        try:
            masks.append(None if mask is None else rle.to_rle(mask, video.height, video.width))
        except ValueError as error:
            raise ResultError(f"{place}, frame {frame}: {error}") from error
    return tuple(masks)
