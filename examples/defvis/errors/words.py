"""The errors of one video in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from defvis.errors.counts import VideoErrors

# Ranges of frames that a sentence names.
_RUNS = 4


def result_numbers(errors: VideoErrors) -> dict[int, int]:
    """The number of each result that counts: that of the object that it found or would find.

    The others have numbers after those of the objects, by falling score.
    """
    finder = errors.kinds.finder.tolist()
    numbers = {index: truth for truth, index in enumerate(finder) if index >= 0}
    scores = errors.comparison.scores
    others = [
        index
        for index in np.argsort(-scores, kind="stable").tolist()
        if index not in numbers and errors.kinds.results[index] != "left out"
    ]
    return numbers | {index: number for number, index in enumerate(others, start=len(finder))}


def describe(errors: VideoErrors, names: Sequence[str]) -> Iterator[str]:
    """Says each error of a video in a sentence, those of identities first.

    Args:
        errors: Of the video. Its objects go by their place in the file, its results by
            `result_numbers`, both and the frames from 0.
        names: Of the classes.
    """
    comparison, kinds, identities = errors.comparison, errors.kinds, errors.identities
    numbers = result_numbers(errors)

    def named(label: int) -> str:
        # Isolated, so that names that run from right to left leave the sentence as it is.
        return f"\u2068{names[label]}\u2069"

    def thing(truth: int) -> str:
        return f"object {truth} ({named(comparison.video.tracks[truth].label)})"

    def result(index: int) -> str:
        label, score = comparison.labels[index], comparison.scores[index]
        return f"result {numbers[index]} ({named(label)} {score:.2f})"

    for swap in identities.swapped:
        by = listed([result(index) for index in swap.results])
        yield f"objects {listed(swap.truths)} are swapped from frame {swap.frame} on, by {by}"
    for merge in identities.merged:
        yield (
            f"{result(merge.result)} covers objects {listed(merge.truths)} at once in "
            f"{in_frames(merge.frames)}"
        )
    for split in identities.split:
        parts = listed([result(index) for index in split.results])
        yield f"{thing(split.truth)} is split into {parts}"
    for truth, kind in enumerate(kinds.objects.tolist()):
        track = comparison.video.tracks[truth]
        if kind == "missed":
            yield f"{thing(truth)} is missed: it is in {in_frames(track.present)}"
        elif kind == "found":
            held = identities.holder[truth]
            lost = [frame for frame in track.present if held[frame] < 0]
            if lost:
                yield f"{thing(truth)} is found, but not in {in_frames(lost)}"
    for index, kind in enumerate(kinds.results.tolist()):
        about = int(kinds.about[index])
        iou = comparison.iou[index, about] if about >= 0 else 0.0
        if kind == "class":
            if kinds.objects[about] == "found":
                finder = numbers[int(kinds.finder[about])]
                yield f"{thing(about)} is found by result {finder}, and taken for {result(index)}"
            else:
                yield f"{thing(about)} is taken for {result(index)}"
        elif kind == "localisation":
            yield f"{thing(about)} is not covered well by {result(index)}: IoU {iou:.2f}"
        elif kind == "duplicate":
            yield f"{result(index)} finds {thing(about)} again"
        elif kind == "both":
            yield f"{result(index)} is near {thing(about)}, of another class: IoU {iou:.2f}"
        elif kind == "background":
            frames = in_frames(comparison.detections[index].masks)
            yield f"{result(index)} is where no object is, in {frames}"


def listed(words: Sequence[object]) -> str:
    """The words as a list in a sentence: "1, 2 and 3"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def in_frames(frames: Iterable[int]) -> str:
    """Numbers of frames in rising order, neighbours together: "frames 0 and 2 to 5"."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][-1] + 1:
            runs[-1][1:] = [frame]
        else:
            runs.append([frame])
    if not runs:
        return "no frame"
    shown = [" to ".join(map(str, run)) for run in runs[:_RUNS]]
    if len(runs) > _RUNS:
        shown.append(f"{len(runs) - _RUNS} more ranges")
    single = runs == [runs[0][:1]]
    return f"frame{'s' * (not single)} {listed(shown)}"
