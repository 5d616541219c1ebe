"""What is finished of a prediction, as JSON lines: in memory, or kept so that it can go on."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from defvis.evaluation.whole_file import naming, whole_file
from defvis.pretrained.tensor_file import CheckpointError, read_tensors
from defvis.programs import LOCK


class Journal:
    """JSON values, one a line, that are appended and read back one by one; kept in memory."""

    def __init__(self) -> None:
        self._file: BinaryIO = io.BytesIO()

    def append(self, value: Any) -> int:
        """Adds a value and returns its place."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(value).encode() + b"\n")
        return place

    def read(self, place: int) -> Any:
        """The value at a place that `append` returned."""
        self._file.seek(place)
        return json.loads(self._file.readline())

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Place and value of every line, in order."""
        place, end = 0, self._file.seek(0, os.SEEK_END)
        while place < end:
            yield place, self.read(place)
            place = self._file.seek(place) + len(self._file.readline())

    @property
    def saved(self) -> dict[str, Any]:
        """What `save` was given last, by this program or a killed one; empty at the beginning."""
        return {}

    def save(self, state: Mapping[str, Any]) -> None:
        """Records what a program needs to go on from here; memory needs no record."""


class KeptJournal(Journal):
    """A journal in a folder: a program that is killed goes on from its last `save`.

    Args:
        folder: Created if it is missing. One live program may use it.
        agreed: What the program that goes on must have in common with the killed one: short texts
            and numbers by name.
        resume: Goes on if the folder holds a journal.
        device: Where the tensors of a state are wanted.

    Raises:
        FileExistsError: If the folder holds a journal and `resume` is False.
        OSError: If the folder cannot be written to.
        ValueError: If `agreed` differs, or the journal is broken.
    """

    def __init__(
        self,
        folder: Path,
        agreed: Mapping[str, Any],
        resume: bool,
        device: torch.device | None = None,
    ) -> None:
        self._folder, self._agreed = folder, dict(agreed)
        self._lines, self._record = folder / "finished.jsonl", folder / "state.pt"
        self._saved: dict[str, Any] = {}
        length = 0
        if self._record.exists():
            if not resume:
                raise FileExistsError(
                    f"{folder} holds an interrupted run: --resume goes on with it; to begin anew, "
                    "delete this folder"
                )
            length = self._load(device)
        with naming(self._lines):
            folder.mkdir(parents=True, exist_ok=True)
            # Whatever was written after the last `save` is cut off: it will be written again.
            self._file = self._lines.open("a+b")
            self._file.truncate(length)

    @property
    def saved(self) -> dict[str, Any]:
        """See `Journal`."""
        return self._saved

    def append(self, value: Any) -> int:
        """See `Journal`."""
        with naming(self._lines):
            return super().append(value)

    def save(self, state: Mapping[str, Any]) -> None:
        """Records, atomically, the length of the journal and what is needed to go on.

        Args:
            state: Tensors and plain values.
        """
        with naming(self._lines):
            self._file.flush()
            length = self._file.seek(0, os.SEEK_END)
        self._saved = dict(state)
        with whole_file(self._record) as partial:
            content = {"agreed": self._agreed, "length": length, "state": self._saved}
            with partial.open("wb") as file:
                torch.save(content, file)

    def remove(self) -> None:
        """Deletes the journal, and its folder if it holds nothing else: all is done."""
        self._file.close()
        for file in (self._lines, self._record, self._folder / LOCK):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def __enter__(self) -> KeptJournal:
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file; the folder stays if there is something to go on with."""
        with contextlib.suppress(OSError):  # What cannot be written was not saved either.
            self._file.close()
        if not self._record.exists():
            self.remove()

    def _load(self, device: torch.device | None) -> int:
        """Reads the record; returns the length that the journal had."""
        anew = f"delete {self._folder} to begin anew"
        try:
            record = read_tensors(self._record, device)
            if not isinstance(record, dict):
                raise TypeError("no dictionary")
            agreed, length, state = (record[name] for name in ("agreed", "length", "state"))
            if not (isinstance(agreed, dict) and type(length) is int and isinstance(state, dict)):
                raise TypeError("parts of other types")
        except (CheckpointError, LookupError, TypeError) as error:
            raise ValueError(f"{self._record} cannot be read; {anew}") from error
        if not self._lines.is_file() or not 0 <= length <= self._lines.stat().st_size:
            raise ValueError(f"{self._lines} is shorter than it was; {anew}")
        for name, value in self._agreed.items():
            before = agreed.get(name)
            if type(before) is not type(value) or before != value:
                raise ValueError(
                    f"{self._folder} was begun with {name} {before}, not {value}; {anew}"
                )
        self._saved = state
        return length
