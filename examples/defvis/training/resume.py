"""What a resumed run must have in common with its checkpoint, and what may change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from defvis.config import Config
from defvis.config_io import flatten
from defvis.data import categories
from defvis.data.dataset import YouTubeVIS
from defvis.pretrained.tensor_file import CheckpointError
from defvis.training.stages import joint_steps, planned_stages

# What does not change learning, but for the order of sums: speed, memory, logging, validation.
_FREE = frozenset(
    (
        *("data.workers", "data.cache_megabytes"),
        *("model.checkpointing", "model.mask_chunk", "loss.mask_chunk"),
        *("log_every", "checkpoint_every", "eval_every", "eval_videos"),
    )
)
# Compared as what they mean together, the number of steps.
_LENGTH = frozenset(("steps", "epochs"))
# Read from the videos, which are compared themselves; a run of an earlier version has not got it.
_OF_VIDEOS = frozenset(("data.seen_short_sides",))


def read_config(saved: Mapping[str, Any], path: Path) -> Config:
    """The config of a checkpoint.

    Args:
        saved: Content of the file.
        path: The file.

    Raises:
        CheckpointError: If the file is none that `Trainer` wrote; the message says what it is.
    """
    for part in ("config", "categories", "model", "state"):
        if not isinstance(saved.get(part), dict):
            raise CheckpointError(
                f"{path} is not a checkpoint of train_defvis, it has no {part!r}; if it holds "
                "the weights of a model, start a run from them: train_defvis --weights"
            )
    return read_description(saved["config"], saved["categories"], path)


def read_description(values: Any, categories: Mapping[str, Any], path: Path) -> Config:
    """The config of a file of this program, once its categories are seen to fit.

    Args:
        values: Result of `Config.to_dict`.
        categories: Lists `ids` and `names`.
        path: The file, for the message.

    Raises:
        CheckpointError: If one of them is none of this version.
    """
    try:
        config = Config.from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"{path} was written by another version: {error}") from error
    for part, kind in (("ids", int), ("names", str)):
        classes: Any = categories.get(part)
        fits = isinstance(classes, list) and len(classes) == config.model.num_classes
        if not fits or any(type(each) is not kind for each in classes):
            raise CheckpointError(
                f"{path} must have {part} of {config.model.num_classes} categories, got {classes!r}"
            )
    return config


def check_resumed(
    path: Path, saved: Mapping[str, Any], config: Config, train: YouTubeVIS, processes: int
) -> None:
    """Compares a run with the checkpoint that it is to go on from.

    Speed, memory, logging and validation may change, and the joint stage may get longer.

    Args:
        path: The checkpoint, for the message.
        saved: Its content.
        config: Of the run.
        train: Its training videos.
        processes: How many train together.

    Raises:
        CheckpointError: If the file is no checkpoint of this program.
        ValueError: If the two differ in what changes learning; the message names every field.
    """
    old = read_config(saved, path)
    missing = [part for part in ("stage", "step", "seconds", "random") if part not in saved]
    if missing:
        raise CheckpointError(f"{path} cannot be resumed, it has no {missing[0]!r}")
    names = saved["categories"]
    other = categories.difference(
        names["ids"], names["names"], train.category_ids, train.category_names
    )
    if other:
        raise ValueError(f"{path} was written with other categories: {other}")
    if "videos" in saved and (other := _other_videos(saved["videos"], train)):
        raise ValueError(f"{path} was written with other training videos: {other}")
    if len(saved["random"]) != processes:
        raise ValueError(f"{path} was written by {len(saved['random'])} processes, not {processes}")
    differing = list(differences(old, config, _FREE | _LENGTH))
    before, after = (joint_steps(each, len(train.videos), processes) for each in (old, config))
    if after < before:
        differing.append(f"the joint stage has {before} steps there and {after} here")
    if differing:
        raise ValueError(
            f"{path} was written with another config: {'; '.join(differing)}. A resumed run may "
            f"have more steps and change {', '.join(sorted(_FREE))}. For other numbers start a "
            f"new run from its weights: --weights {path.parent} and another --out"
        )
    if saved["stage"] not in {stage.name for stage in planned_stages(config)}:
        raise CheckpointError(f"{path} is of a stage {saved['stage']!r}, which the run has not")


def differences(old: Config, new: Config, free: frozenset[str] = frozenset()) -> Iterator[str]:
    """Each field in which two configs differ, with both values, in words; but for `free` ones."""
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    for path, value in before.items():
        if path not in free | _OF_VIDEOS and after[path] != value:
            yield f"{path} is {value!r} there and {after[path]!r} here"


def describe_videos(train: YouTubeVIS) -> dict[str, Any]:
    """What the clips that are drawn depend on, but the pixels and where their files lie."""
    digest = hashlib.sha256()
    for video in train.videos:
        names = [f"{file.parent.name}/{file.name}" for file in video.files]
        tracks = [(track.label, track.is_crowd, track.present) for track in video.tracks]
        digest.update(repr((names, video.width, video.height, tracks)).encode())
    return {
        "ids": [video.id for video in train.videos],
        "lengths": [video.length for video in train.videos],
        "content": digest.hexdigest(),
    }


def _other_videos(saved: Mapping[str, Any], train: YouTubeVIS) -> str:
    """The first difference, in words; "" if there is none."""
    own = describe_videos(train)
    if len(saved["ids"]) != len(own["ids"]):
        return f"{len(saved['ids'])} there and {len(own['ids'])} here"
    for place, (there, here) in enumerate(zip(saved["ids"], own["ids"], strict=True)):
        if there != here:
            return f"place {place} has video {there} there and {here} here"
    for number, there, here in zip(own["ids"], saved["lengths"], own["lengths"], strict=True):
        if there != here:
            return f"video {number} has {there} frames there and {here} here"
    if saved.get("content", own["content"]) != own["content"]:
        return "names of frames or annotations differ"
    return ""
