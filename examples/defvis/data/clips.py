"""Draws training clips from videos and stacks them to batches, padded in space and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from defvis.config import DataConfig
from defvis.data import rle
from defvis.data.augment import Augmentation, draw_augmentation
from defvis.data.boxes import boxes_of_masks
from defvis.data.dataset import Frames, Track, Video, YouTubeVIS
from defvis.data.paste import MOST_OBJECTS, MOST_VIDEOS, SCALES, Layers, paste
from defvis.data.resize_crop import ResizeCrop, Size, draw_resize_crop, scale_frames, varies

# ImageNet statistics, which pretrained backbones expect.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Targets:
    """The objects of one clip.

    Attributes:
        labels: Class indices, int64 [G].
        boxes: Boxes of the visible pixels, float32 [G, T, 4]; zeros where absent.
        masks: bool [G, T, H, W], of the unpadded frames.
        valid: bool [G, T], True where the object is visible.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        tensors = (self.labels, self.boxes, self.masks, self.valid)
        return Targets(*(_send(tensor, device) for tensor in tensors))


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one video with their objects.

    Attributes:
        frames: Normalised pixels, float32 [T, 3, H, W].
        targets: Its objects.
    """

    frames: Tensor
    targets: Targets


@dataclass(frozen=True)
class Batch:
    """Clips padded to one size.

    Attributes:
        frames: float32 [B, T, 3, H, W], zero on padding.
        padding_mask: bool [B, T, H, W], True on padding; None if nothing is padded.
        targets: One entry per clip, padded in time and (masks) in space like the frames.
    """

    frames: Tensor
    padding_mask: Tensor | None
    targets: list[Targets]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        padding = self.padding_mask
        return Batch(
            _send(self.frames, device),
            None if padding is None else _send(padding, device),
            [targets.to(device) for targets in self.targets],
        )

    def pin_memory(self) -> Batch:
        """The same where a GPU can fetch it; called by the loader."""
        targets = [
            Targets(*(t.pin_memory() for t in (own.labels, own.boxes, own.masks, own.valid)))
            for own in self.targets
        ]
        padding = None if self.padding_mask is None else self.padding_mask.pin_memory()
        return Batch(self.frames.pin_memory(), padding, targets)

    def split(self, parts: int) -> list[Batch]:
        """Cuts into at most `parts` batches of neighbouring clips, as equal as can be."""
        size = -(-len(self.targets) // parts)
        return [
            Batch(
                self.frames[start : start + size],
                None if self.padding_mask is None else self.padding_mask[start : start + size],
                self.targets[start : start + size],
            )
            for start in range(0, len(self.targets), size)
        ]


class FrameCache:
    """Decoded frames of videos, kept in memory until a size is reached."""

    def __init__(self, megabytes: int) -> None:
        self._left = megabytes * 2**20
        self._videos: dict[tuple[int, Size], NDArray[np.uint8]] = {}

    def frames(self, video: Frames, indices: Sequence[int], size: Size) -> NDArray[np.uint8]:
        """Returns RGB frames [len(indices), H, W, 3] scaled to `size`, height and width."""
        key = (video.id, size)
        if key not in self._videos:
            needed = video.length * size[0] * size[1] * 3
            if needed > self._left:
                return _read(video, indices, size)
            self._left -= needed
            self._videos[key] = _read(video, range(video.length), size)
        return self._videos[key][list(indices)]


@dataclass(frozen=True)
class Pasted:
    """Objects of a video that are laid over a clip of another.

    Attributes:
        video: Its place in the dataset.
        frames: Of that video.
        resize_crop: Which part of them, and how large before it is scaled.
        size: Height and width that it is scaled to.
        objects: Its objects, counted without crowd regions.
        places: Where the middle of each is put, see `paste`.
    """

    video: int
    frames: range
    resize_crop: ResizeCrop
    size: Size
    objects: list[int]
    places: list[tuple[float, float]]


@dataclass(frozen=True)
class Draws:
    """What chance decides of a training clip.

    Attributes:
        frames: Of the video.
        resize_crop: Which part of them, and how large.
        augmentation: How they are changed, after objects are laid over them.
        pasted: These objects, by the video that they are taken from.
    """

    frames: range
    resize_crop: ResizeCrop
    augmentation: Augmentation
    pasted: tuple[Pasted, ...]


class ClipDataset(Dataset[Clip]):
    """Random clips: item (epoch, index) is video `index` with the draws of that epoch.

    The randomness of an item depends on (seed, epoch, index) alone, so neither worker processes
    nor a resumed run change what is drawn.
    """

    def __init__(
        self, data: YouTubeVIS, num_frames: int, config: DataConfig, seed: int, cache: FrameCache
    ) -> None:
        self.videos = data.videos
        self._num_frames = num_frames
        self._config = config
        self._seed = seed
        self._cache = cache

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> Clip:
        draws = self.draws(key)
        video = self.videos[key[1]]
        layers = self._layers(video, video.objects, draws.frames, draws.resize_crop)
        for pasted in draws.pasted:
            video = self.videos[pasted.video]
            tracks = video.objects
            objects = [tracks[row] for row in pasted.objects]
            other = self._layers(video, objects, pasted.frames, pasted.resize_crop, pasted.size)
            layers = paste(layers, other, pasted.places)
        pixels, masks = draws.augmentation.apply(layers.pixels, layers.masks)
        return make_clip(pixels, layers.labels, masks)

    def draws(self, key: tuple[int, int]) -> Draws:
        """What is drawn for the item `key`."""
        epoch, index = key
        random = np.random.default_rng((self._seed, epoch, index))
        frames, resize_crop = self._draw_part(random, index)
        augmentation = draw_augmentation(self._config, random)
        pasted: tuple[Pasted, ...] = ()
        if self._config.paste and random.random() < self._config.paste:
            videos = random.integers(len(self.videos), size=random.integers(1, MOST_VIDEOS + 1))
            pasted = tuple(self._draw_pasted(random, video) for video in videos.tolist())
        return Draws(frames, resize_crop, augmentation, pasted)

    def _draw_pasted(self, random: np.random.Generator, video: int) -> Pasted:
        """Which objects of a video are laid over another, and where."""
        frames, resize_crop = self._draw_part(random, video)
        scale = random.uniform(*SCALES)
        height, width = (max(1, round(scale * side)) for side in resize_crop.size)
        rows = random.permutation(len(self.videos[video].objects))
        objects = rows[:MOST_OBJECTS].tolist()
        places = [(random.random(), random.random()) for _ in objects]
        return Pasted(video, frames, resize_crop, (height, width), objects, places)

    def _draw_part(self, random: np.random.Generator, index: int) -> tuple[range, ResizeCrop]:
        """Which frames of a video are shown, and which part of them."""
        video = self.videos[index]
        start = int(random.integers(max(1, video.length - self._num_frames + 1)))
        frames = range(start, min(start + self._num_frames, video.length))
        return frames, draw_resize_crop(random, video.height, video.width, self._config)

    def _layers(
        self,
        video: Video,
        objects: Sequence[Track],
        frames: range,
        resize_crop: ResizeCrop,
        size: Size | None = None,
    ) -> Layers:
        """Frames and some objects of a part of a video; `size` scales them once more."""
        if varies(self._config):
            whole = self._cache.frames(video, frames, (video.height, video.width))
            pixels = resize_crop.pixels(whole)
        else:
            pixels = self._cache.frames(video, frames, resize_crop.size)
        if size is not None:
            pixels, resize_crop = scale_frames(pixels, size), replace(resize_crop, size=size)
        labels = np.array([track.label for track in objects], dtype=np.int64)
        return Layers(pixels, labels, object_masks(objects, frames, resize_crop))


def make_clip(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], masks: NDArray[np.bool_]
) -> Clip:
    """Turns arrays into tensors, drops objects without a visible pixel, computes boxes.

    Args:
        pixels: RGB [T, H, W, 3].
        labels: [G].
        masks: [G, T, H, W].
    """
    seen = masks.any(axis=(1, 2, 3))
    masks = np.ascontiguousarray(masks[seen])
    tensor = torch.from_numpy(masks)
    return Clip(
        frames=normalise(pixels),
        targets=Targets(
            labels=torch.from_numpy(labels[seen]),
            boxes=boxes_of_masks(tensor),
            masks=tensor,
            valid=torch.from_numpy(masks.any(axis=(2, 3))),
        ),
    )


def normalise(pixels: NDArray[np.uint8]) -> Tensor:
    """RGB bytes [T, H, W, 3] to normalised float32 [T, 3, H, W]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    # The short axis of colours first: as the last one it takes seven times as long.
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    return floats.div_(255).sub_(mean).div_(std)


def as_pictures(frames: Tensor) -> NDArray[np.uint8]:
    """Normalised float32 [T, 3, H, W] back to RGB bytes [T, H, W, 3]."""
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    scaled = frames.permute(0, 2, 3, 1) * std + mean
    pixels: NDArray[np.uint8] = (255 * scaled).round().to(torch.uint8).numpy()
    return pixels


def collate(clips: Sequence[Clip]) -> Batch:
    """Pads clips at the end of time, right and bottom to the largest of the batch."""
    sizes = [(clip.frames.shape[0], *clip.frames.shape[2:]) for clip in clips]
    frames, height, width = (max(axis) for axis in zip(*sizes, strict=True))
    pixels = torch.zeros(len(clips), frames, 3, height, width)
    padding = torch.ones(len(clips), frames, height, width, dtype=torch.bool)
    targets = []
    for row, (clip, (t, h, w)) in enumerate(zip(clips, sizes, strict=True)):
        pixels[row, :t, :, :h, :w] = clip.frames
        padding[row, :t, :h, :w] = False
        source = clip.targets
        objects = len(source.labels)
        boxes = torch.zeros(objects, frames, 4)
        masks = torch.zeros(objects, frames, height, width, dtype=torch.bool)
        valid = torch.zeros(objects, frames, dtype=torch.bool)
        boxes[:, :t], masks[:, :t, :h, :w], valid[:, :t] = source.boxes, source.masks, source.valid
        targets.append(Targets(source.labels, boxes, masks, valid))
    padded = any(size != (frames, height, width) for size in sizes)
    return Batch(pixels, padding if padded else None, targets)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device, which may fetch it later if it is pinned.

    MPS would also fetch other memory later, even if it is freed by then.
    """
    return tensor.to(device, non_blocking=tensor.is_pinned())


def _read(video: Frames, indices: Sequence[int], size: Size) -> NDArray[np.uint8]:
    return np.concatenate([scale_frames(video.frame(index)[None], size) for index in indices])


def object_masks(
    tracks: Sequence[Track], indices: Sequence[int], resize_crop: ResizeCrop
) -> NDArray[np.bool_]:
    """Masks [G, T, H, W] of the frames."""
    masks = np.zeros((len(tracks), len(indices), *resize_crop.size), dtype=bool)
    for row, track in enumerate(tracks):
        present = {
            column: run_lengths
            for column, index in enumerate(indices)
            if (run_lengths := track.masks[index]) is not None
        }
        if present:  # One object at a time: at full size, all would need much memory.
            for column, mask in zip(present, rle.decode_all([*present.values()]), strict=True):
                masks[row, column] = resize_crop.mask(mask)
    return masks
