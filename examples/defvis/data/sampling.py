"""The endless order of training clips, which depends on a seed and a position alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EndlessSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) keys, every video once per epoch, in a new order each epoch.

    Args:
        num_videos: Videos per epoch.
        seed: Of the orders.
        start: Keys of all processes to leave out at the beginning, for a resumed run.
        count: Keys of all processes together.
        rank: This process, which takes the keys rank, rank + world_size, ... after `start`.
        world_size: Number of processes. Together they take what a single one would.
    """

    def __init__(
        self, num_videos: int, seed: int, start: int, count: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._num_videos = num_videos
        self._seed = seed
        self._range = range(start + rank, start + count, world_size)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for position in self._range:
            if position // self._num_videos != epoch:
                epoch = position // self._num_videos
                order = np.random.default_rng((self._seed, epoch)).permutation(self._num_videos)
            yield epoch, int(order[position % self._num_videos])
