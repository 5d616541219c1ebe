"""A picture of training clips as the model sees them: plain and augmented, with their truth."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from defvis.config import Config
from defvis.data import rle
from defvis.data.clips import Clip, ClipDataset, Draws, FrameCache, as_pictures
from defvis.data.dataset import Video, YouTubeVIS
from defvis.data.resize_crop import ResizeCrop
from defvis.evaluation.fonts import class_texts, readable
from defvis.evaluation.overlays import Overlay, draw_overlay
from defvis.evaluation.whole_file import whole_file
from defvis.progress import followed

# Clips side by side, the frames shown of each, the room of a frame: 2,000 pixels are not exceeded.
_COLUMNS, _FRAMES, _CELL = 2, 3, 320
_GAP, _MARGIN, _TITLE = 2, 20, 13


@dataclass(frozen=True)
class SheetCounts:
    """What a contact sheet shows.

    Attributes:
        clips: Number of clips.
        classes: Classes of which an object is in one of them.
    """

    clips: int
    classes: int


def save_contact_sheet(
    data: YouTubeVIS,
    config: Config,
    path: Path,
    clips: int = 12,
    leave_out: Container[int] = (),
    progress: bool = False,
) -> SheetCounts:
    """Draws clips of the first epoch: plain above, and below as training changes them.

    The pixels and masks are those of `ClipDataset`. The clips are chosen so that they show as many
    classes as they can; the others are spread over the videos.

    Args:
        data: Training videos.
        config: The run's numbers: frames of a clip, sizes, augmentation, seed.
        path: PNG file to write, at most 2,000 pixels wide.
        clips: The most clips to show.
        leave_out: Ids of videos that cannot be read.
        progress: Shows progress.

    Raises:
        DataError: If a frame that is to be shown cannot be read.
        OSError: If the file cannot be written.
    """
    # Not even as those whose objects are laid over others.
    usable = tuple(video for video in data.videos if video.id not in leave_out)
    sheet = _Clips(replace(data, videos=usable), config)
    labels = [sheet.labels(row) for row in range(len(usable))]
    chosen = _choose(labels, clips)
    blocks = [
        _block(*sheet.rows(row)) for row in followed(chosen, "draw", "clip", disable=not progress)
    ]
    _save_grid(blocks, path)
    return SheetCounts(len(blocks), len(set[int]().union(*(labels[row] for row in chosen))))


class _Clips:
    """The clips of the first epoch, plain and changed."""

    def __init__(self, data: YouTubeVIS, config: Config) -> None:
        self._data = data
        # In place of its class, each object of the dataset has its number: colours are the same in
        # both rows.
        self._tracks = [track for video in data.videos for track in video.tracks]
        number = itertools.count()
        numbered = replace(data, videos=tuple(_numbered(video, number) for video in data.videos))
        plain = replace(
            config.data, short_sides=(), crop=0.0, flip=0.0, reverse=0.0, permute_channels=0.0,
            paste=0.0, recolour=0.0,
        )  # fmt: skip
        self._plain, self._changed = (
            ClipDataset(numbered, config.model.num_frames, each, config.seed, FrameCache(0))
            for each in (plain, config.data)
        )
        self._names = class_texts(data.category_names, data.category_ids)

    def labels(self, row: int) -> set[int]:
        """The classes in the clip of a video."""
        frames = self._plain.draws((0, row)).frames
        return {
            track.label
            for track in self._data.videos[row].objects
            if any(track.masks[frame] is not None for frame in frames)
        }

    def rows(self, row: int) -> tuple[tuple[str, list[Image.Image]], ...]:
        """The plain and the changed clip: title and pictures of each."""
        video, key = self._data.videos[row], (0, row)
        plain, changed = self._plain[key], self._changed[key]
        draws = self._changed.draws(key)
        counts = Counter(map(self._name, plain.targets.labels.tolist()))
        named = (f"{count} x " * (count > 1) + name for name, count in counts.items())
        objects = ", ".join(named) or "no object"
        frames = draws.frames
        seen = f"frames {frames[0]} to {frames[-1]} of {video.length}"
        return (
            (f"video {video.id}, {seen}, {_size(plain)}: {objects}", self._pictures(plain)),
            (f"trained on: {_changes(draws, changed, video)}", self._pictures(changed)),
        )

    def _name(self, number: int) -> str:
        return self._names[self._tracks[number].label]

    def _pictures(self, clip: Clip) -> list[Image.Image]:
        """First, middle and last frame of a clip with the truth."""
        pixels, masks = as_pictures(clip.frames), clip.targets.masks.numpy()
        pictures = []
        for frame in sorted({0, len(pixels) // 2, len(pixels) - 1}):
            shown = _fitting(*pixels.shape[1:3])
            overlays = []
            for number, mask in zip(clip.targets.labels.tolist(), masks[:, frame], strict=True):
                outline = _outline(shown.mask(mask))
                if outline.any():
                    name = self._name(number)
                    overlays.append(Overlay(number, name, {frame: rle.encode(outline)}))
            height, width = shown.size
            scale = max(1, min(_CELL // width, _CELL // height))
            picture = shown.pixels(pixels[frame : frame + 1])[0]
            pictures.append(draw_overlay(picture, overlays, frame, scale))
        return pictures


def _numbered(video: Video, number: Iterator[int]) -> Video:
    """With the next numbers in place of the classes of its objects."""
    return replace(
        video, tracks=tuple(replace(track, label=next(number)) for track in video.tracks)
    )


def _fitting(height: int, width: int) -> ResizeCrop:
    """Shrinks frames that are larger than their room on the sheet."""
    share = min(1.0, _CELL / height, _CELL / width)
    size = max(1, round(height * share)), max(1, round(width * share))
    return ResizeCrop(0, 0, (height, width), size)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels at a mask's border: what is inside stays visible, so one sees whether it fits."""
    inside: NDArray[np.bool_] = binary_erosion(mask)
    return mask & ~inside


def _size(clip: Clip) -> str:
    height, width = clip.frames.shape[2:]
    return f"{width} x {height}"


def _changes(draws: Draws, clip: Clip, video: Video) -> str:
    """What was done to a clip, in words."""
    height, width = draws.resize_crop.window
    cut = [f"cut to {width} x {height}"] * ((height, width) != (video.height, video.width))
    pasted = ["objects of other videos"] * bool(draws.pasted)
    return ", ".join([_size(clip), *cut, *pasted, *draws.augmentation.describe()])


def _choose(labels: Sequence[set[int]], count: int) -> list[int]:
    """Places of clips that together show as many classes as they can, in rising order.

    Args:
        labels: The classes in each clip.
        count: The most clips to choose.
    """
    chosen: set[int] = set()
    missing = set[int]().union(*labels)
    while missing and len(chosen) < count:
        best = max(range(len(labels)), key=lambda place: len(missing & labels[place]))
        chosen.add(best)
        missing -= labels[best]
    others = [place for place in range(len(labels)) if place not in chosen]
    wanted = min(count - len(chosen), len(others))
    chosen |= {others[place * len(others) // wanted] for place in range(wanted)}
    return sorted(chosen)


def _block(*rows: tuple[str, Sequence[Image.Image]]) -> Image.Image:
    """The rows of one clip, each under its title."""
    width = _FRAMES * (_CELL + _GAP) - _GAP
    heights = [_TITLE + 2 * _GAP + max(image.height for image in images) for _, images in rows]
    block = Image.new("RGB", (width, sum(heights)), "white")
    draw = ImageDraw.Draw(block)
    top = 0
    for (title, images), height in zip(rows, heights, strict=True):
        text, font = readable(title, _TITLE)
        while draw.textlength(text, font=font) > width:
            text = text[:-4] + "..."
        draw.text((0, top), text, fill="black", font=font)
        for column, image in enumerate(images):
            block.paste(image, (column * (_CELL + _GAP), top + _TITLE + 2 * _GAP))
        top += height
    return block


def _save_grid(blocks: Sequence[Image.Image], path: Path) -> None:
    """Writes blocks of one width, row by row."""
    lines = [blocks[first : first + _COLUMNS] for first in range(0, len(blocks), _COLUMNS)]
    heights = [max(block.height for block in line) + _MARGIN for line in lines]
    across = blocks[0].width + _MARGIN
    width = min(_COLUMNS, len(blocks)) * across + _MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN), "white")
    top = _MARGIN
    for line, height in zip(lines, heights, strict=True):
        for column, block in enumerate(line):
            sheet.paste(block, (_MARGIN + column * across, top))
        top += height
    with whole_file(path) as partial:
        sheet.save(partial)
