"""How far work has come, on stderr: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from time import monotonic
from types import TracebackType
from typing import ClassVar, TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Seconds between lines and before the first; before a bar.
_BETWEEN, _DELAY = 10.0, 1.0


class Progress:
    """Counts units of work in a `with` block.

    On a terminal a bar of tqdm appears after a second. In a file, a pipe or a notebook, whole
    lines are written: at the first `update` after 10 s, then at the first after every 10 s more,
    and one at the end. What takes less than 10 s writes nothing. Blocks may be nested: they share
    their lines, which come no more often.

    Args:
        what: What is done, for example "predict".
        unit: One of what is counted, for example "video"; an s makes it the plural.
        total: Number of units; None if it is not known.
        first: Units that were done before.
        disable: Shows nothing; `write` still prints.
    """

    # Blocks that write lines, the outermost first, and when the last line was written or the
    # outermost began.
    _open: ClassVar[list[Progress]] = []
    _last: ClassVar[float] = 0.0

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        first: int = 0,
        disable: bool = False,
    ) -> None:
        self._what, self._unit, self._total, self._first = what, unit, total, first
        self._done, self._figures = first, ""
        self._on, self._bar = not disable, None
        self._begin, self._spoke = 0.0, False

    def __enter__(self) -> Progress:
        self._begin = monotonic()
        if not self._on:
            return self
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=self._what, unit=self._unit, total=self._total, initial=self._first,
                delay=_DELAY, leave=None,
            )  # fmt: skip
            return self
        if not self._open:
            Progress._last = self._begin
        self._open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._on:
            # A generator that holds a block may end it after one that began later.
            self._open.remove(self)
            if self._spoke and not self._open:
                seconds = tqdm.format_interval(monotonic() - self._begin)
                _line(f"{self._count()} in {seconds}{self._figures}")

    def update(self, count: int = 1) -> None:
        """Counts units that are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._on and monotonic() - Progress._last >= _BETWEEN:
            Progress._last = monotonic()
            for block in self._open:
                block._spoke = True
            outer = [block._count() for block in self._open if block is not self]
            _line("; ".join([*outer, f"{self._count()}{self._speed()}{self._figures}"]))

    def show(self, figures: Mapping[str, str]) -> None:
        """Sets what is shown beside the count, for example {"loss": "0.314"}."""
        self._figures = "".join(f", {name} {figure}" for name, figure in figures.items())
        if self._bar is not None:
            self._bar.set_postfix(figures)

    def write(self, text: str) -> None:
        """Prints a line to stdout, above a bar."""
        if self._bar is not None:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def _count(self) -> str:
        of = "" if self._total is None else f" of {self._total}"
        return f"{self._what}: {self._done}{of} {self._unit}s"

    def _speed(self) -> str:
        """Rate and time left, from all units of this block."""
        rate = (self._done - self._first) / max(monotonic() - self._begin, 1e-9)
        if not rate:
            return ""
        text = f", {rate:.1f} {self._unit}s/s" if rate >= 1 else f", {1 / rate:.1f} s/{self._unit}"
        if self._total is not None:
            text += f", {tqdm.format_interval((self._total - self._done) / rate)} left"
        return text


def followed(
    items: Iterable[T], what: str, unit: str, total: int | None = None, disable: bool = False
) -> Iterator[T]:
    """The items, one by one, with their `Progress`; each counts when the next is asked for.

    Args:
        items: Any.
        what: As in `Progress`.
        unit: As in `Progress`.
        total: Number of items; None takes the length of `items`, if it has one.
        disable: As in `Progress`.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, unit, total, disable=disable) as progress:
        for item in items:
            yield item
            progress.update()


def _line(text: str) -> None:
    sys.stdout.flush()  # Both may be one file.
    print(text, file=sys.stderr, flush=True)
