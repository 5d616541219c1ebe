"""Tracks of a video from the slots of its clips: slots of neighbouring clips are linked."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from defvis.data import rle
from defvis.data.dataset import Frames
from defvis.data.rle import RLE
from defvis.evaluation.journal import Journal

# A (track, class) below this score is not worth an entry in a results list.
MIN_SCORE = 0.02
# Results of longer videos leave out the frames before and after an object, see `to_results`.
MAX_WHOLE_LENGTH = 300
# Two slots of neighbouring clips are one object if their masks overlap at least this much (IoU
# over the shared frames). Half of a mask may be wrong on either side of a clip's border.
_MIN_LINK_IOU = 0.3


@dataclass(frozen=True)
class SlotTrack:
    """The prediction of a slot for a video, or of the slots of several clips for one object.

    Attributes:
        identity: Number of the object. In a video of one clip it is the slot's index.
        scores: One score per class, [num_classes]: its mean probability over the frames in which
            the object is drawn, times the mean probability of the pixels that are drawn. So a
            track with an uncertain outline comes after one with a certain outline, as in Cheng et
            al., "Mask2Former for Video Instance Segmentation", 2021.
        masks: The mask, at the video's own size, of every frame in which the object is present, in
            order of the frames.
        length: Number of frames of the video.
    """

    identity: int
    scores: NDArray[np.float32]
    masks: Mapping[int, RLE]
    length: int

    @property
    def label(self) -> int:
        """The likeliest class."""
        return int(self.scores.argmax())

    @property
    def score(self) -> float:
        """The score of the likeliest class."""
        return float(self.scores.max())


class TrackBuilder:
    """Turns the clips of one video into tracks; keeps only frames that later clips can change.

    Clips must come in order and may overlap; where they do, linked slots are averaged
    (probabilities of classes, logits of masks). Where a clip begins right after the last one, the
    last frame is compared with its first. An object that is absent from all frames that are
    compared gets a new identity when it returns in a later clip.

    Args:
        video: The video.
        frame_size: Height and width in pixels of the frames that the network was given.
        journal: Takes the finished frames. If it holds some already, the builder goes on from
            what `state` was when they were complete.
        state: Result of `state`; None at the beginning.
    """

    def __init__(
        self,
        video: Frames,
        frame_size: tuple[int, int],
        journal: Journal | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._video, self._frame_size = video, frame_size
        self._journal = Journal() if journal is None else journal
        state = state or {"next": 0, "first": 0, "end": 0, "open": {}, "last": {}}
        self._next: int = state["next"]  # The lowest unused identity.
        # Frames of the open part; earlier ones are in the journal.
        self._first: int = state["first"]
        self._end: int = state["end"]
        self._open = {identity: _Sums(*sums) for identity, sums in state["open"].items()}
        # Mask logits [h, w] of the frame before `_first`, where no frame is open.
        self._last: dict[int, Tensor] = dict(state["last"])
        self._seen: dict[int, _StoredMasks] = {}
        for place, line in self._journal:
            self._note(_Seen(*line), place)

    def add(self, start: int, probabilities: Tensor, mask_logits: Tensor) -> None:
        """Adds a clip.

        Args:
            start: Its first frame, not before the last clip's.
            probabilities: [I, T, num_classes].
            mask_logits: [I, T, h, w], the frame at any scale; positive inside.
        """
        self.finish(start)
        linked = self._link(mask_logits)
        free, self._next = self._next, self._next + len(mask_logits)
        end = start + mask_logits.shape[1]
        for slot, (classes, masks) in enumerate(zip(probabilities, mask_logits, strict=True)):
            sums = _Sums(classes, masks, torch.ones_like(masks[:, 0, 0]))
            identity = linked.get(slot, free + slot)
            before = self._open.get(identity)
            self._open[identity] = sums if before is None else before + sums
        self._end = max(self._end, end)

    def finish(self, end: int) -> None:
        """Writes the frames before `end`, which no later clip will change, into the journal."""
        done = end - self._first
        if done <= 0:
            return
        self._last = {}
        for identity, sums in self._open.items():
            for index in range(min(done, len(sums.count))):
                self._write(identity, index, sums)
            if end == self._end == self._first + len(sums.count):
                self._last[identity] = sums.masks[-1]
        self._open = {
            identity: _Sums(sums.classes[done:], sums.masks[done:], sums.count[done:])
            for identity, sums in self._open.items()
            if len(sums.count) > done
        }
        self._first = end

    def state(self) -> dict[str, Any]:
        """What a new builder needs to go on: plain values and tensors of the open part."""
        return {
            "next": self._next,
            "first": self._first,
            "end": self._end,
            "open": {
                identity: tuple(t.clone() for t in (sums.classes, sums.masks, sums.count))
                for identity, sums in self._open.items()
            },
            "last": {identity: logits.clone() for identity, logits in self._last.items()},
        }

    def tracks(self) -> list[SlotTrack]:
        """Ends the video; tracks without any mask are left out."""
        self.finish(self._end)
        return [
            SlotTrack(identity, _scores(masks.lines()), masks, self._video.length)
            for identity, masks in self._seen.items()
        ]

    def _link(self, mask_logits: Tensor) -> dict[int, int]:
        """The open track that each slot of a new clip continues, if any."""
        shared = min(self._end - self._first, mask_logits.shape[1])
        before = self._last
        if shared > 0:
            before = {i: _padded(sums.masks, shared)[:shared] for i, sums in self._open.items()}
        if not before or not len(mask_logits):
            return {}
        old = (torch.stack(list(before.values())) > 0).flatten(1).float()
        new = (mask_logits[:, : max(1, shared)] > 0).flatten(1).float()
        both = old @ new.T
        union = old.sum(1)[:, None] + new.sum(1) - both
        iou = (both / union.clamp(min=1)).cpu().numpy()
        identities = list(before)
        return {
            int(slot): identities[row]
            for row, slot in zip(*linear_sum_assignment(iou, maximize=True), strict=True)
            if iou[row, slot] >= _MIN_LINK_IOU
        }

    def _write(self, identity: int, index: int, sums: _Sums) -> None:
        """Writes an open frame of a track, unless its mask is empty."""
        low = sums.masks[index] / sums.count[index]
        # Interpolation between logits of which none is positive gives none that is.
        if not (low > 0).any():
            return
        logits = self._to_video(low)
        mask = logits > 0
        if not mask.any():
            return
        inside = logits[mask].sigmoid()
        seen = _Seen(
            identity,
            self._first + index,
            rle.encode(mask.cpu().numpy())["counts"].decode("ascii"),
            (sums.classes[index] / sums.count[index]).tolist(),
            float(inside.sum()),
            len(inside),
        )
        self._note(seen, self._journal.append(seen))

    def _note(self, seen: _Seen, place: int) -> None:
        if seen.identity not in self._seen:
            size = self._video.height, self._video.width
            self._seen[seen.identity] = _StoredMasks(self._journal, size)
        self._seen[seen.identity].add(seen.frame, place)

    def _to_video(self, logits: Tensor) -> Tensor:
        """Enlarges mask logits [h, w] to the network's frame, then to the video's."""
        size = (self._video.height, self._video.width)
        for wanted in dict.fromkeys((self._frame_size, size)):
            logits = F.interpolate(
                logits[None, None], size=wanted, mode="bilinear", align_corners=False
            )[0, 0]
        return logits


def to_results(
    tracks: Sequence[SlotTrack], video_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Tracks as entries of a results.json, see `track_results`."""
    return [entry for track in tracks for entry in track_results(track, video_id, category_ids)]


def track_results(
    track: SlotTrack, video_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """A track as entries of a results.json, one per class above MIN_SCORE.

    A video of at most MAX_WHOLE_LENGTH frames gets the form of the YouTube-VIS server: a list
    `segmentations` with one entry per frame, null where the object is absent. In a longer one it
    has the frames from the first to the last in which the object is present, and `first_frame` is
    the number of the first, from 0: so a file grows with what is seen, not with its square.
    """
    first, end = 0, track.length
    whole = track.length <= MAX_WHOLE_LENGTH
    if not whole:
        frames = list(track.masks)
        first, end = frames[0], frames[-1] + 1
    segmentations = [
        None if (mask := track.masks.get(frame)) is None else rle.to_json(mask)
        for frame in range(first, end)
    ]
    return [
        {
            "video_id": video_id,
            "category_id": category_ids[label],
            "score": float(track.scores[label]),
            **({} if whole else {"first_frame": first}),
            "segmentations": segmentations,
        }
        for label in np.flatnonzero(track.scores > MIN_SCORE).tolist()
    ]


class _Seen(NamedTuple):
    """An object in a frame, as a line of the journal."""

    identity: int
    frame: int
    counts: str  # of the mask's run lengths
    classes: list[float]  # probabilities, [num_classes]
    inside: float  # sum of the probabilities of the mask's pixels
    pixels: int  # number of these pixels


class _StoredMasks(Mapping[int, RLE]):
    """The masks of one track by frame, in a journal."""

    def __init__(self, journal: Journal, size: tuple[int, int]) -> None:
        self._journal, self._size = journal, size
        self._frames, self._places = array("q"), array("q")

    def add(self, frame: int, place: int) -> None:
        """Adds a frame after all others."""
        self._frames.append(frame)
        self._places.append(place)

    def lines(self) -> Iterator[_Seen]:
        """All that the journal has of the track, in order of the frames."""
        return (_Seen(*self._journal.read(place)) for place in self._places)

    def __getitem__(self, frame: int) -> RLE:
        index = bisect_left(self._frames, frame)
        if self._frames[index : index + 1] != array("q", [frame]):
            raise KeyError(frame)
        seen = _Seen(*self._journal.read(self._places[index]))
        return {"size": list(self._size), "counts": seen.counts.encode("ascii")}

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def _scores(frames: Iterable[_Seen]) -> NDArray[np.float32]:
    """See `SlotTrack.scores`."""
    classes, inside, pixels = array("f"), array("d"), 0
    for frame in frames:
        classes.extend(frame.classes)
        inside.append(frame.inside)
        pixels += frame.pixels
    mean = torch.tensor(classes).view(len(inside), -1).mean(0)
    scores: NDArray[np.float32] = (mean * (sum(inside) / pixels)).numpy()
    return scores


@dataclass(frozen=True)
class _Sums:
    """Open frames of one track: sums over clips, and the number of clips."""

    classes: Tensor  # [P, num_classes]
    masks: Tensor  # [P, h, w]
    count: Tensor  # [P]

    def __add__(self, other: _Sums) -> _Sums:
        length = max(len(self.count), len(other.count))
        pairs = (
            (self.classes, other.classes),
            (self.masks, other.masks),
            (self.count, other.count),
        )
        return _Sums(*(_padded(a, length) + _padded(b, length) for a, b in pairs))


def _padded(sums: Tensor, length: int) -> Tensor:
    """`sums` with zeros at the end of its first axis."""
    missing = max(0, length - len(sums))
    return torch.cat((sums, sums.new_zeros(missing, *sums.shape[1:])))
