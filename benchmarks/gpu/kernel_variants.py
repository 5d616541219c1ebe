"""What `tune` tries: other constants and lines in csrc/cuda, and what can be forced at run time.

A variant is a name and changes of source lines, which are compiled; a knob is a field of `Tuning`
(csrc/cuda/params.h) and values for it, which are not. Both say what to change where they win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.processes import ROOT

FORWARD, BACKWARD = "forward", "backward"
CUDA = Path("csrc", "cuda")


@dataclass(frozen=True)
class Change:
    """A line or equal lines of one file of csrc/cuda.

    Attributes:
        pattern: What is replaced, a regular expression; every match of it in the file.
        text: What takes its place.
        file: Where it is looked for; by default in all files, and taken from the first that has it.
    """

    pattern: str
    text: str
    file: str = "*.*"

    def apply(self, texts: dict[str, str]) -> None:
        """Changes the texts of files, by their names.

        Raises:
            ValueError: Nothing there matches.
        """
        name = str(_find(self.pattern, self.file).relative_to(ROOT / CUDA))
        texts[name] = re.sub(self.pattern, lambda _: self.text, texts[name])

    def say(self) -> str:
        """Where it is, what is there and what would be."""
        return f"{place(self.pattern, self.file)} -> {self.text.strip()}"


@dataclass(frozen=True)
class KernelVariant:
    """Another set of kernels.

    Attributes:
        name: As it is reported.
        mode: The mode that it makes a difference to.
        changes: Of the sources.
    """

    name: str
    mode: str
    changes: tuple[Change, ...]

    @property
    def slug(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"\W+", "-", self.name)

    def files(self) -> dict[str, str]:
        """The changed files of csrc/cuda; none where the variant is what is there anyway."""
        before = {
            str(path.relative_to(ROOT / CUDA)): path.read_text()
            for path in (ROOT / CUDA).rglob("*.*")
        }
        after = dict(before)
        for change in self.changes:
            change.apply(after)
        return {name: text for name, text in after.items() if text != before[name]}

    def say(self) -> str:
        """What to change for it."""
        return "; ".join(change.say() for change in self.changes)


@dataclass(frozen=True)
class Knob:
    """A field of `Tuning`.

    Attributes:
        name: Of the field.
        mode: The mode that it makes a difference to.
        values: That are tried beside the kernels' own choice.
    """

    name: str
    mode: str
    values: tuple[int, ...]

    def say(self, value: int) -> str:
        """What to change for a value."""
        return f"{self.name} = {value}, chosen in {place(f'tuning.{self.name}')}"


def _constant(name: str, mode: str, value: int) -> KernelVariant:
    change = Change(rf"constexpr int {name} = \d+;", f"constexpr int {name} = {value};")
    return KernelVariant(f"{name} = {value}", mode, (change,))


def _sum_blocks(blocks: int) -> KernelVariant:
    there = r"(?<=constexpr int kBinBlocks = sizeof\(Real\) == 8 \? 2 : )\d+"
    return KernelVariant(f"kBinBlocks = {blocks}", BACKWARD, (Change(there, str(blocks)),))


def _bins(name: str, value: str) -> KernelVariant:
    change = Change(rf"(?<=constexpr int {name} = )[^;]*;", f"{value};")
    return KernelVariant(f"{name} = {value}", BACKWARD, (change,))


VARIANTS = (
    *(_constant("kForwardWarps", FORWARD, warps) for warps in (12, 16, 20)),
    KernelVariant(
        "gather not unrolled",
        FORWARD,
        (Change(r"#pragma unroll 2\n", "#pragma unroll 1\n", "forward.cuh"),),
    ),
    *(_sum_blocks(blocks) for blocks in (3, 4, 5)),
    *(_bins("kAhead", rows) for rows in ("1", "3")),
    _bins("kBinCorners", "N == 3 ? 2 : 1"),
    KernelVariant(
        "launches overlap",
        BACKWARD,
        (Change(r"(?<=#define STDEFORM_OVERLAP_LAUNCHES )0", "1", "compat.cuh"),),
    ),
)

KNOBS = (
    Knob("forward_bricks", FORWARD, (0, 3, 8)),
    Knob("forward_splits", FORWARD, (1, 2, 4)),
    Knob("backward_splits", BACKWARD, (1, 2, 4)),
    Knob("backward_bins", BACKWARD, (0, 1)),
    Knob("samples_per_warp", BACKWARD, (64, 256, 512)),
    Knob("workspace_bytes", BACKWARD, (8 << 20, 256 << 20)),
)


def knobs(mode: str) -> list[dict[str, int]]:
    """What is forced in turn; first nothing."""
    return [
        {},
        *({knob.name: value} for knob in KNOBS if knob.mode == mode for value in knob.values),
    ]


def say(variant: str, forced: Mapping[str, int]) -> str:
    """What to change in which line, for a variant by its name and values of knobs."""
    by_name = {each.name: each for each in VARIANTS}
    parts = [by_name[variant].say()] if variant in by_name else []
    parts += [knob.say(forced[knob.name]) for knob in KNOBS if knob.name in forced]
    return "; ".join(parts) or "nothing"


def place(pattern: str, file: str = "*.*") -> str:
    """The first line that matches: its file, number and text."""
    path = _find(pattern, file)
    source = path.read_text()
    match = re.search(pattern, source)
    assert match is not None
    number = source.count("\n", 0, match.start()) + 1
    return f"{path.relative_to(ROOT)}:{number}: {source.splitlines()[number - 1].strip()}"


def _find(pattern: str, file: str) -> Path:
    for path in sorted((ROOT / CUDA).rglob(file)):
        if re.search(pattern, path.read_text()):
            return path
    raise ValueError(f"csrc/cuda/{file} has nothing like {pattern}")
