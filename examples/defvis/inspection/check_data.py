"""Looks at a whole dataset before it is trained on: counts, mistakes, a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from defvis.config import Config
from defvis.data.dataset import YouTubeVIS
from defvis.evaluation.whole_file import whole_file
from defvis.inspection.contact_sheet import save_contact_sheet
from defvis.inspection.findings import Finding, Findings
from defvis.inspection.read_all import Repeats, readings
from defvis.inspection.survey import ClassCount, Spread, Survey, survey
from defvis.progress import Progress

# What `check_data` writes.
CHECK_FILES = ("data-check.png", "data-check.txt")
# Classes and sizes named in the table; objects of a class that are few to learn from.
_CLASSES, _SIZES, _FEW = 10, 2, 10

_UNLEARNED = "classes without an object to train on"
_RARE = f"classes with fewer than {_FEW} objects to train on"
_UNTESTED = "classes without an object to validate on: their scores are unknown"


@dataclass(frozen=True)
class DataCheck:
    """What was found.

    Attributes:
        text: All of it, to print: at most five of a kind.
        refused: Number of things that stop training.
    """

    text: str
    refused: int


def check_data(
    train: YouTubeVIS,
    val: YouTubeVIS,
    config: Config,
    out: Path,
    notes: Sequence[str] = (),
    progress: bool = True,
) -> DataCheck:
    """Reads every picture and every mask; writes `data-check.png` and `data-check.txt`.

    The first is a contact sheet of `save_contact_sheet`, the second has every finding.

    Args:
        train: Videos to train on.
        val: Videos to validate on.
        config: The run's numbers. `data.workers` processes read.
        out: Folder to write to; it must exist.
        notes: Sentences on how the data were read. They go into the file; the caller prints them.
        progress: Shows progress.

    Raises:
        OSError: If a file cannot be written.
    """
    surveys = {"train": survey(train), "val": survey(val)}
    odd, refused = Findings(_odd_classes(*surveys.values())), Findings()
    repeats, unreadable = Repeats(), set[int]()
    frames = sum(each.frames for each in surveys.values())
    with Progress("read", "frame", frames, disable=not progress) as bar:
        for split, data in (("train", train), ("val", val)):
            for video, reading in zip(data.videos, readings(data, config), strict=True):
                refused.add(_within(split, reading.refused))
                odd.add(_within(split, reading.odd))
                repeats.add(split, video.id, reading.digests)
                if reading.refused and split == "train":
                    unreadable.add(video.id)
                bar.update(video.length)
    odd.add(repeats.findings())
    sheet_file, text_file = (out / name for name in CHECK_FILES)
    sheet = _draw(train, config, sheet_file, unreadable, progress)
    table = _table(surveys)
    with whole_file(text_file) as partial:
        lines = [*table, *notes, *_findings(odd, refused, len(refused) + len(odd))]
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    lines = [*table, *_findings(odd, refused), sheet, f"every finding: {text_file}"]
    return DataCheck("\n".join(lines), len(refused))


def _draw(
    train: YouTubeVIS, config: Config, file: Path, unreadable: set[int], progress: bool
) -> str:
    """Writes the contact sheet; returns a sentence on it."""
    if len(unreadable) == len(train.videos):
        file.unlink(missing_ok=True)
        return "no contact sheet: no video can be read"
    drawn = save_contact_sheet(train, config, file, leave_out=unreadable, progress=progress)
    return f"contact sheet: {file}: {drawn.clips} clips with {drawn.classes} classes"


def _within(split: str, findings: Sequence[Finding]) -> Iterator[Finding]:
    for finding in findings:
        yield Finding(finding.kind, f"{split} {finding.text}")


def _odd_classes(train: Survey, val: Survey) -> Iterator[Finding]:
    for own, other in zip(train.classes, val.classes, strict=True):
        if not own.objects:
            yield Finding(_UNLEARNED, f"{own.name}: {other.objects} to validate on")
        elif own.objects < _FEW:
            yield Finding(_RARE, f"{own.name}: {_occurrences(own)}")
        if own.objects and not other.objects:
            yield Finding(_UNTESTED, own.name)


def _findings(odd: Findings, refused: Findings, *most: int) -> list[str]:
    lines = []
    if len(odd):
        lines += [f"{len(odd)} odd entries, which may be right:", *odd.lines(*most)]
    else:
        lines.append("no odd entries")
    if len(refused):
        lines += [f"{len(refused)} refused, which stop training:", *refused.lines(*most)]
    return lines


def _table(surveys: dict[str, Survey]) -> list[str]:
    """Lines with a column for each split."""
    splits = list(surveys.values())
    rows = [
        ("", *surveys),
        *((name, *(write(each) for each in splits)) for name, write in _ROWS),
        *_class_rows(*(each.classes for each in splits)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _class_rows(
    train: Sequence[ClassCount], val: Sequence[ClassCount]
) -> Iterator[tuple[str, ...]]:
    """The most frequent classes, and the others in one line."""
    yield f"classes: {len(train)}", "", ""
    order = sorted(range(len(train)), key=lambda label: -train[label].objects)
    shown = len(order) if len(order) <= _CLASSES else _CLASSES - 1
    for label in order[:shown]:
        yield (
            f"  {train[label].name}",
            *(_occurrences(split[label]) for split in (train, val)),
        )
    rest = order[shown:]
    if rest:
        yield (
            f"  {len(rest)} others",
            *(f"{sum(split[label].objects for label in rest):,}" for split in (train, val)),
        )


def _occurrences(own: ClassCount) -> str:
    if not own.objects:
        return "0"
    return f"{own.objects:,} in {own.videos:,} video" + "s" * (own.videos != 1)


def _counted(spread: Spread) -> str:
    if spread.least == spread.most:
        return f"{spread.median:g}"
    return f"{spread.median:g} ({spread.least:g} to {spread.most:g})"


def _sizes(found: Survey) -> str:
    named = [f"{width} x {height}" for (height, width), _ in found.sizes[:_SIZES]]
    rest = len(found.sizes) - len(named)
    return ", ".join(named) + f" and {rest} other sizes" * (rest > 0)


def _objects(found: Survey) -> str:
    spread = found.objects_per_video
    if spread.least == spread.most:
        return f"{spread.median:g}"
    return f"{spread.median:g} ({spread.least:g} to {spread.most:g}; 95 %: {spread.high:g})"


_ROWS = (
    ("videos", lambda found: f"{found.videos:,}"),
    ("frames", lambda found: f"{found.frames:,}"),
    ("  of a video: median (range)", lambda found: _counted(found.lengths)),
    ("  width x height", _sizes),
    ("  short side: median (range)", lambda found: _counted(found.short_sides)),
    ("objects", lambda found: f"{found.objects:,}"),
    ("  of a video: median (range)", _objects),
    ("  present in their video's frames", lambda found: f"{found.presence:.0%}"),
    ("crowd regions, left out", lambda found: f"{found.crowd:,}"),
    ("masks", lambda found: f"{found.masks:,}"),
    (
        "  root of area / short side: median (5 to 95 %)",
        lambda found: (
            f"{found.object_sizes.median:.0%} ({found.object_sizes.low:.0%} to "
            f"{found.object_sizes.high:.0%})"
        ),
    ),
)
