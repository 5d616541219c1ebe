"""Finds training and validation videos below one folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from defvis.data import categories
from defvis.data.dataset import YouTubeVIS, hold_out
from defvis.data.ytvis import annotation_file, find_files, listed, load
from defvis.decoding.errors import DataError

# What the splits are called, in any case.
_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "dev")


def load_splits(
    root: Path, hold_out_every: int, progress: bool = False
) -> tuple[YouTubeVIS, YouTubeVIS, tuple[str, ...]]:
    """Loads the training and the validation videos of a dataset.

    A split is a folder with its name (train or training; val, valid, validation or dev) that holds
    annotations and frames as `ytvis.find_files` takes them. The annotations may also lie in the
    folder above, or in its `annotations/`, in a file with the split's name as one of its words
    (train.json, annotations_train.json, instances_train_sub.json); the frames may lie in
    JPEGImages/train or in train itself. Or `root` is a single split.

    Args:
        root: Folder of the dataset.
        hold_out_every: Without annotated validation videos, every n-th training video is held out.
        progress: Shows progress.

    Returns:
        Training videos, validation videos, and sentences to print on what was found.

    Raises:
        DataError: If there is no split for training or more than one for the same purpose, if the
            two have other categories, or if one of them breaks a rule.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    train_files = _find(root, _TRAIN)
    single = train_files is None and (root / "JPEGImages").is_dir()
    if single:
        train_files = find_files(root)
    if train_files is None:
        raise DataError(
            f"{root} holds no training videos: looked for {' and '.join(_TRAIN)}, as a folder "
            f"with instances.json and JPEGImages/; found {listed(root)}"
        )
    train = load(*train_files, progress)
    if not any(video.tracks for video in train.videos):
        raise DataError(f"{train_files[0]} has no annotations: nothing can be learned from it")
    notes = [] if single else _unused(root)
    val, reason = (None, f"{root} is a single split") if single else _validation(root, progress)
    if val is None:
        train, val = hold_out(train, hold_out_every)
        notes.append(f"{reason}: every {hold_out_every}th training video is held out")
        return train, val, (*train.notes, *notes)
    other = categories.difference(
        train.category_ids, train.category_names, val.category_ids, val.category_names
    )
    if other:
        raise DataError(f"training and validation videos in {root} differ: {other}")
    return train, val, (*train.notes, *val.notes, *notes)


def _validation(root: Path, progress: bool) -> tuple[YouTubeVIS | None, str]:
    """The validation videos; or None, and why there are none."""
    found = {name: files for name in _VAL if (files := _find(root, (name,))) is not None}
    loaded = {name: load(*files, progress) for name, files in found.items()}
    annotated = [name for name, data in loaded.items() if any(v.tracks for v in data.videos)]
    if len(annotated) > 1:
        raise DataError(
            f"{root} holds more than one validation split: {', '.join(annotated)}; leave one"
        )
    if annotated:
        return loaded[annotated[0]], ""
    names = [folder.name for folder in _folders(root, _VAL)] or list(found)
    if names:
        return None, f"{' and '.join(names)} in {root} without annotations cannot validate"
    return None, f"{root} has no validation videos ({', '.join(_VAL)})"


def _find(root: Path, names: tuple[str, ...]) -> tuple[Path, Path] | None:
    """Annotation file and frame folder of the split with one of the names, if it is there."""
    folders = _folders(root, names)
    if len(folders) > 1:
        found = ", ".join(folder.name for folder in folders)
        raise DataError(f"{root} holds more than one folder for the same split: {found}; leave one")
    file = annotation_file(folders[0]) if folders else None
    if file is not None:
        return find_files(folders[0])
    files = [
        file
        for folder in (root, *_folders(root, ("annotations",)))
        for file in sorted(folder.glob("*.json"))
        if set(re.split(r"[\W_]+", file.stem.lower())) & set(names)
    ]
    if len(files) > 1:
        raise DataError(
            f"{root} holds more than one annotation file for the same split: "
            f"{', '.join(str(file.relative_to(root)) for file in files)}; leave one"
        )
    if not files:
        return None
    pictures = _folders(root, ("jpegimages", "images"))
    within = [folder for parent in pictures for folder in _folders(parent, names)]
    own = [folder / "JPEGImages" for folder in folders]
    for frames in (*own, *within, *folders, *pictures):
        if frames.is_dir():
            return files[0], frames
    raise DataError(
        f"{files[0]} has no folder of frames: looked for {names[0]}/JPEGImages, "
        f"JPEGImages/{names[0]}, {names[0]} and JPEGImages in {root}; found {listed(root)}"
    )


def _unused(root: Path) -> list[str]:
    """Sentences on splits that take no part in training."""
    known = {*_TRAIN, *_VAL}
    return [
        f"{folder} is not used"
        for folder in sorted(root.iterdir())
        if folder.is_dir()
        and folder.name.lower() not in known
        and ("test" in folder.name.lower() or _holds_split(folder))
    ]


def _holds_split(folder: Path) -> bool:
    return (folder / "JPEGImages").is_dir() or (folder / "instances.json").is_file()


def _folders(parent: Path, names: Iterable[str]) -> list[Path]:
    """The folders in `parent` with one of the names, whatever their case."""
    return sorted(
        folder for folder in parent.iterdir() if folder.name.lower() in names and folder.is_dir()
    )
