"""Rows of results as they are measured: printed, kept, written as JSON lines, and read again.

The first line of a run is its header: where and with what it was measured. It holds for all rows
until the next header, so that files of several runs can be put together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import environment
from benchmarks.measure.rows import Row

_BUSY = 0.25  # load average per core from which a run says that it is not alone
SCHEMA = 2  # of header and rows; raised when a field changes its meaning


def add_arguments(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    """Declares the options that every command which measures has."""
    add_threads(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"for the timed rounds of one comparison; default {seconds:g}",
    )
    parser.add_argument("--rounds", type=count, help="exactly this many rounds instead")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; default 0")
    parser.add_argument(
        "--output", type=Path, help="write the rows here as JSON lines, each as it is measured"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Declares the option of commands that run on a processor."""
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=count, default=threads, help="by default torch's")


def add_slow_rounds(parser: argparse.ArgumentParser, *, default: int | None) -> None:
    """Declares the option of commands that time calls of many seconds beside short ones."""
    known = "no limit" if default is None else default
    parser.add_argument(
        "--slow-rounds",
        type=count,
        default=default,
        help="what takes half of --seconds for itself is left out from then on, but not before it "
        f"had this many rounds; default {known}",
    )


def count(text: str) -> int:
    """A whole number of at least 1, of the command line."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def without_rounds(row: Row) -> Row:
    """A row as it is recorded: instead of the time of every round their number."""
    recorded = dict(row)
    if "rounds" in recorded:
        recorded["num_rounds"] = len(recorded.pop("rounds"))
    return recorded


def load_rows(paths: Iterable[Path]) -> list[Row]:
    """Rows of recorded runs, each with the fields of its run's header.

    Args:
        paths: Files of JSON lines.

    Raises:
        SystemExit: A file does not begin with a header of this schema.
    """
    rows: list[Row] = []
    for path in paths:
        header: Row = {}
        for text in filter(None, path.read_text().splitlines()):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                print(f"-- {path}: left out, the run was stopped in this row: {text}", flush=True)
                continue
            if "schema" in line:
                header = line
            else:
                rows.append({**header, **line})
            if header.get("schema") != SCHEMA:
                raise SystemExit(f"{path} has no header of schema {SCHEMA}")
    return rows


class Recorder:
    """Takes the rows of a run.

    Args:
        suite: Name of the command.
        options: With those of `add_arguments`.
        arguments: As on the command line.
        device: "cpu" or "cuda".
        append: Whether the file keeps the rows that it has.

    Attributes:
        rows: All so far as `load_rows` gives them: with the header, without raw rounds.
    """

    def __init__(
        self,
        suite: str,
        options: argparse.Namespace,
        arguments: list[str],
        *,
        device: str = "cpu",
        append: bool = False,
    ) -> None:
        self._about: dict[str, Any] = {
            "schema": SCHEMA,
            "suite": suite,
            **environment.describe(arguments, device),
        }
        self._output: Path | None = options.output
        self.rows: list[Row] = []
        if self._output:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            if not append:
                self._output.unlink(missing_ok=True)
            elif self._output.exists():
                with self._output.open("a") as file:
                    file.write("\n")  # the last row may have been cut off
            self._write(self._about)
        if self._about["load_average_at_start"] > _BUSY * self._about["cores"]:
            print("-- this machine is busy with other work: the figures will be off", flush=True)

    def add(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Passes rows on, completed and with their raw rounds, as soon as each is there."""
        for row in rows:
            recorded = without_rounds(row)
            self.rows.append({**self._about, **recorded})
            self._write(recorded)
            yield {**self.rows[-1], **row}

    def _write(self, line: Row) -> None:
        if self._output:
            with self._output.open("a") as file:
                file.write(json.dumps(line) + "\n")
