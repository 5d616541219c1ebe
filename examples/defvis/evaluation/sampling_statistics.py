"""Where the samples of all queries lie: how far away, in which frames, and on which objects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from defvis.config import DataConfig
from defvis.data.clips import FrameCache, normalise, object_masks
from defvis.data.dataset import Video
from defvis.data.resize_crop import ResizeCrop, Size, network_size
from defvis.evaluation.predict import clip_starts
from defvis.evaluation.sampling_points import LayerPoints, deformable, watched
from defvis.models.model import DefVIS
from defvis.progress import Progress
from stdeform import STDeformAttn

# A slot shows an object if their masks have this IoU over the clip. Objects that do not overlap
# cannot share a slot.
_MIN_IOU = 0.5
# An object has moved if the centre of its mask has, by more than this many cells.
_MOVED = 0.5

# Of each query that belongs to an object, [P]: the query and the object.
Pairs = tuple[Tensor, Tensor]


@dataclass
class LayerStatistics:
    """Sums over the samples of a layer, each multiplied with its attention weight.

    "Other frames" are those in which the object of a query is visible, without the query's own.

    Attributes:
        layer: Its name, for example "encoder 1".
        points: "untrained" or "trained".
        queries: Number of queries.
        of_objects: Number of those that belong to an object.
        spread: Distance in x and y in cells and in t in frames from the reference; what is read in
            the query's own frame, in others, and lost outside of the volume; all weight.
        objects: What the queries of objects read in other frames: on this object, on others, on
            background, where the object is in the query's frame; the product of a sample's
            distance in (x, y) with the object's motion since the query's frame, its square, all.
        moved: The same, of those frames alone in which the object has moved.
    """

    layer: str
    points: str
    queries: int = 0
    of_objects: int = 0
    spread: Tensor = field(default_factory=lambda: torch.zeros(7, dtype=torch.float64))
    objects: Tensor = field(default_factory=lambda: torch.zeros(7, dtype=torch.float64))
    moved: Tensor = field(default_factory=lambda: torch.zeros(7, dtype=torch.float64))

    @property
    def means(self) -> list[float]:
        """Distance in x, y and t; shares of own frame, other frames, outside."""
        means: list[float] = (self.spread[:6] / self.spread[6]).tolist()
        return means

    def shares(self, moved: bool) -> list[float]:
        """Shares on the object, on others, on background, on the object if it had stood still.

        The last figure is how much of the object's motion the samples follow: the factor with
        which the motion comes closest to the distances of the samples in (x, y), in least squares.
        It is 1 if they lie around the object as the reference does, and 0 if they do not depend on
        its motion. Without any such query all are NaN.
        """
        sums = self.moved if moved else self.objects
        shares: list[float] = torch.cat((sums[:4] / sums[6], sums[4:5] / sums[5])).tolist()
        return shares


@torch.no_grad()
def measure_sampling(
    model: DefVIS,
    videos: Sequence[Video],
    config: DataConfig,
    window: int = 0,
    progress: bool = False,
) -> list[LayerStatistics]:
    """Measures the samples of every layer, and those it would have with its first weights.

    The latter lie around the references of the trained model, so that the queries are the same.
    A video of more than `window` frames is measured as the clips that `predict_videos` cuts.

    Args:
        model: In eval mode.
        videos: With their objects. Crowds count as background.
        config: For the size of the frames.
        window: Frames per clip; 0 takes as many as the model was trained on.
        progress: Shows progress.

    Returns:
        Two entries per layer, untrained and trained.

    Raises:
        ValueError: If the attention of a layer is not deformable in the volume, or reads several
            levels.
    """
    window = window or model.config.num_frames
    layers = _layers(model)
    figures = {
        name: (LayerStatistics(name, "untrained"), LayerStatistics(name, "trained"))
        for name in layers
    }
    with Progress("sampling", "video", len(videos), disable=not progress) as shown:
        for video in videos:
            size = network_size(video.height, video.width, config)
            whole = video.length <= window
            for start in [0] if whole else clip_starts(video.length, window):
                frames = range(start, min(start + window, video.length))
                pixels = normalise(FrameCache(0).frames(video, frames, size))
                with watched(layers.values()) as seen:
                    masks = model.predict(pixels[None].to(model.device))[2][0]
                objects = _Objects(_true_masks(video, frames, size).to(model.device))
                slots = F.interpolate(masks, size=size, mode="bilinear", align_corners=False) > 0
                for name, layer in layers.items():
                    points = seen[layer]
                    if name.startswith("encoder"):
                        pairs = objects.of_cells(points.shape)
                    else:
                        pairs = objects.of_slots(slots)
                    _add(figures[name][0], points.untrained(layer), objects, pairs)
                    _add(figures[name][1], points, objects, pairs)
            shown.update(1)
    return [figure for pair in figures.values() for figure in pair]


def to_tables(figures: Iterable[LayerStatistics]) -> str:
    """Two Markdown tables: of all queries, and of those that belong to objects."""
    of_all = [
        ["layer", "points", "queries", "x (cells)", "y (cells)", "t (frames)", "own frame",
         "other frames", "outside"],
    ]  # fmt: skip
    of_objects = [
        ["layer", "points", "queries of objects", "other frames", "on the object", "on others",
         "on background", "if it stood still", "motion followed"],
    ]  # fmt: skip
    for one in figures:
        of_all.append([one.layer, one.points, f"{one.queries:,}", *map(_shown, one.means)])
        for moved, frames in ((False, "all"), (True, "object moved")):
            shares = map(_shown, one.shares(moved))
            of_objects.append([one.layer, one.points, f"{one.of_objects:,}", frames, *shares])
    return f"{_markdown(of_all)}\n\n{_markdown(of_objects)}"


class _Objects:
    """The true objects of a clip: masks bool [G, T, H, W], and where they are in each frame."""

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks
        self.visible = masks.flatten(2).any(-1)  # [G, T]
        self.covered = masks.any(0)  # [T, H, W]
        # (x, y) in fractions of the frame, [G, T, 2].
        self.centres = torch.stack([_mean_place(masks.sum(axis)) for axis in (2, 3)], -1)

    def of_cells(self, shape: Sequence[int]) -> Pairs:
        """The encoder's: the centre of the query's cell lies on the object."""
        rows, columns = (
            ((torch.arange(cells, device=self.masks.device) + 0.5) / cells * pixels).long()
            for cells, pixels in zip(shape[1:], self.masks.shape[2:], strict=True)
        )
        of_cells = self.masks[:, :, rows[:, None], columns].flatten(1)
        objects, queries = of_cells.nonzero(as_tuple=True)
        return queries, objects

    def of_slots(self, slots: Tensor) -> Pairs:
        """The decoder's: the slot shows the object, which is visible in the query's frame.

        Args:
            slots: Predicted masks, bool [I, T, H, W].
        """
        ours, theirs = slots.flatten(1).float(), self.masks.flatten(1).float()
        both = ours @ theirs.T
        union = ours.sum(1)[:, None] + theirs.sum(1) - both
        shows = both >= _MIN_IOU * union.clamp(min=1)
        slot, thing, frame = (shows[:, :, None] & self.visible).nonzero(as_tuple=True)
        return slot * slots.shape[1] + frame, thing


def _add(figure: LayerStatistics, points: LayerPoints, objects: _Objects, pairs: Pairs) -> None:
    """Adds the samples of a layer in one clip."""
    num_frames, height, width = points.shape
    sizes = points.references.new_tensor((width, height, num_frames))
    locations = points.locations
    centres = points.references[:, None, None, :3]
    away = (locations - centres) * sizes  # [Q, M, K, 3]
    own = (centres[..., 2:] * num_frames).long()  # [Q, 1, 1, 1]
    frames, read = points.reads()

    weight, inside, in_own = points.weights.sum(), read.sum(), (read * (frames == own)).sum()
    spread = (points.weights[..., None] * away.abs()).sum((0, 1, 2))
    shares = torch.stack((in_own, inside - in_own, weight - inside, weight))
    figure.spread += torch.cat((spread, shares)).double().cpu()
    figure.queries += len(centres)

    # From here on of each pair, [P, M, K, 2].
    queries, thing = pairs[0], pairs[1][:, None, None, None]
    frames, own = frames[queries], own[queries]
    read = read[queries] * (objects.visible[thing, frames] & (frames != own))
    columns, rows = (
        (locations[queries][..., axis, None] * pixels).long().clamp(0, pixels - 1)
        for axis, pixels in enumerate(reversed(objects.masks.shape[2:]))
    )
    on_it = objects.masks[thing, frames, rows, columns]
    covered = objects.covered[frames, rows, columns]
    still = objects.masks[thing, own, rows, columns].expand_as(on_it)
    motion = (objects.centres[thing, frames] - objects.centres[thing, own]) * sizes[:2]
    along = (away[queries][..., None, :2] * motion).sum(-1)
    squared = motion.square().sum(-1)
    factors = (on_it, covered & ~on_it, ~covered, still, along, squared, torch.ones_like(read))
    sums = torch.stack(factors) * read
    figure.objects += sums.double().sum((1, 2, 3, 4)).cpu()
    figure.moved += (sums * (squared > _MOVED**2)).double().sum((1, 2, 3, 4)).cpu()
    figure.of_objects += len(queries)


def _layers(model: DefVIS) -> dict[str, STDeformAttn]:
    """The deformable layers by name, in the order in which they are called."""
    encoder = [deformable(layer.attention) for layer in model.encoder.layers]
    decoder = [deformable(layer.cross_attention) for layer in model.decoder.layers]
    return {
        f"{part} {number}": layer
        for part, layers in (("encoder", encoder), ("decoder", decoder))
        for number, layer in enumerate(layers, start=1)
    }


def _true_masks(video: Video, frames: range, size: Size) -> Tensor:
    """Masks of the objects, bool [G, T, H, W], without crowds."""
    whole = ResizeCrop(0, 0, (video.height, video.width), size)
    return torch.from_numpy(object_masks(video.objects, frames, whole))


def _mean_place(counts: Tensor) -> Tensor:
    """Centre of the pixels counted along an axis, [..., N] to [...], as a fraction of it."""
    places = (torch.arange(counts.shape[-1], device=counts.device) + 0.5) / counts.shape[-1]
    return (counts * places).sum(-1) / counts.sum(-1).clamp(min=1)


def _shown(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.3f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
