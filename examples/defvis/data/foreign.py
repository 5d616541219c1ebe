"""Names the formats of other datasets that are taken for YouTube-VIS's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WANTED = (
    "; write it as YouTube-VIS does: videos with file_names, and for each object an annotation "
    "with a video_id and segmentations, one for each frame"
)


def name_format(content: Mapping[str, Any]) -> str:
    """What a file is whose `videos` is no list, or whose videos have no `file_names`."""
    videos = content.get("videos")
    if isinstance(content.get("sequences"), list):
        return "this is the format of BURST, with sequences in place of videos" + _WANTED
    if isinstance(content.get("images"), list):
        return "this is the format of COCO, of single images" + _WANTED
    if isinstance(content.get("shapes"), list):
        return "this is a file of LabelMe, of one picture" + _WANTED
    if isinstance(videos, dict):
        return "this is the meta.json of YouTube-VOS, whose masks are pictures" + _WANTED
    if isinstance(videos, list) and any(
        isinstance(video, dict) and "images" in video for video in videos
    ):
        return "this is the format of VIPSeg, of panoptic segmentation" + _WANTED
    return ""
