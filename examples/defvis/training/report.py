"""Validation of a model, and the files at the end of a run: figures, curves, overlays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defvis.config import DataConfig
from defvis.data.clips import FrameCache
from defvis.data.dataset import Video, YouTubeVIS
from defvis.evaluation.ap import VideoAP, evaluate
from defvis.evaluation.distinct import distinct
from defvis.evaluation.fonts import class_texts
from defvis.evaluation.overlays import (
    DrawnFrames,
    Overlay,
    every_nth,
    save_animation,
    save_strip,
    sheet_scale,
)
from defvis.evaluation.predict import predict_videos
from defvis.evaluation.tracks import SlotTrack, to_results
from defvis.evaluation.whole_file import whole_file, write_results
from defvis.models.model import DefVIS
from defvis.progress import followed
from defvis.training.distributed import World
from defvis.training.log import Row
from defvis.training.plots import draw_curves
from defvis.training.sharding import in_step

# Written at the end of a run, besides the folder overlays/.
REPORT_FILES = ("metrics.json", "results.json", "curves.png")
# Videos drawn at the end, the score from which a slot is drawn, the width to enlarge them to; the
# most frames of a strip and of an animation.
_PICTURES, _DRAW_SCORE, _DRAW_WIDTH, _STRIP, _ANIMATED = 8, 0.3, 320, 12, 100


@dataclass(frozen=True)
class Validation:
    """Predictions of a model for videos, and their score.

    Attributes:
        tracks: Tracks of each video.
        results: The same as entries of a results.json.
        ap: Their figures.
    """

    tracks: list[list[SlotTrack]]
    results: list[dict[str, Any]]
    ap: VideoAP


def validate(
    model: DefVIS,
    data: YouTubeVIS,
    config: DataConfig,
    cache: FrameCache,
    progress: bool,
    precision: str = "fp32",
    world: World | None = None,
) -> Validation:
    """Predicts and scores all videos of `data`. Leaves the model in eval mode.

    Args:
        model: The model.
        data: Videos with ground truth.
        config: For the size of the frames.
        cache: Holds decoded frames.
        progress: Shows progress.
        precision: Of the model's arithmetic.
        world: The processes that share the videos; each gets all results.
    """
    world = world or World()
    world.equalise(model)
    model.eval()
    own = data.videos[world.rank :: world.size]
    with in_step(model):
        predicted = list(
            predict_videos(model, own, config, cache, progress=progress, precision=precision)
        )
    everyone = world.gather(predicted)
    tracks = [everyone[i % world.size][i // world.size] for i in range(len(data.videos))]
    results = [
        result
        for video, slots in zip(data.videos, tracks, strict=True)
        for result in to_results(slots, video.id, data.category_ids)
    ]
    return Validation(tracks, results, evaluate(data, results))


def write_report(out: Path, data: YouTubeVIS, validation: Validation, rows: Sequence[Row]) -> None:
    """Writes metrics.json, results.json, curves.png and overlays/ with the first videos.

    Args:
        out: Folder of the run.
        data: The validation videos.
        validation: The model's predictions for them.
        rows: The lines of the log; the last is this validation's.
    """
    metrics = {
        **validation.ap.figures,
        "AP per class": dict(zip(_distinct(data), validation.ap.per_class, strict=True)),
        "training minutes": rows[-1]["minutes"],
        "videos": len(data.videos),
    }
    metrics_file, results_file, curves_file = (out / name for name in REPORT_FILES)
    with whole_file(metrics_file) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n")
    write_results(results_file, validation.results)
    with whole_file(curves_file) as partial:
        draw_curves(rows, partial)
    folder = out / "overlays"
    folder.mkdir(exist_ok=True)
    names = class_texts(data.category_names, data.category_ids)
    drawn = list(zip(data.videos, validation.tracks, strict=True))[:_PICTURES]
    for video, slots in followed(drawn, "overlays", "video"):
        _draw(folder, video, slots, names)


def _distinct(data: YouTubeVIS) -> list[str]:
    """Names of the classes, with the id where several have one name."""
    count = Counter(data.category_names)
    return [
        name if count[name] == 1 else f"{name} (id {number})"
        for name, number in zip(data.category_names, data.category_ids, strict=True)
    ]


def _draw(folder: Path, video: Video, slots: Sequence[SlotTrack], names: Sequence[str]) -> None:
    """Truth and prediction of a video: the strip shows both, the animation the prediction."""
    truth = [
        Overlay(number, names[track.label], track.masks)
        for number, track in enumerate(video.tracks)
    ]
    predicted = [
        Overlay(slot.identity, f"{names[slot.label]} {slot.score:.2f}", slot.masks)
        for slot in distinct(slots, _DRAW_SCORE)
    ]
    strip = every_nth(video.length, _STRIP)
    scale = sheet_scale(video.width, len(strip), _DRAW_WIDTH)
    which = f", {', '.join(map(str, strip))} of {video.length}" if strip.step > 1 else ""

    def images(overlays: Sequence[Overlay]) -> DrawnFrames:
        return DrawnFrames(video, overlays, scale, strip)

    rows = [
        (f"frames{which}", images([])),
        ("truth", images(truth)),
        ("prediction (#slot: class score)", images(predicted)),
    ]
    save_strip(rows, folder / f"video{video.id:05d}.png")
    animated = every_nth(video.length, _ANIMATED)
    film = DrawnFrames(video, predicted, max(1, _DRAW_WIDTH // video.width), animated)
    save_animation(film, folder / f"video{video.id:05d}.webp")
