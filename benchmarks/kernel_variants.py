"""What `tune` tries: other constants and lines in csrc/cuda, and what can be forced at run time.

A variant is a name and changes of source lines, which are compiled; a knob is a field of `Tuning`
(csrc/cuda/tuning.h) and values for it, which are not. Both say what to change where they win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .processes import ROOT

FORWARD, BACKWARD = "forward", "backward"
CUDA = Path("csrc", "cuda")


@dataclass(frozen=True)
class Change:
    """One or more equal lines of a file.

    Attributes:
        file: In csrc/cuda.
        pattern: What is replaced, a regular expression; every match of it.
        text: What takes its place.
    """

    file: str
    pattern: str
    text: str

    def apply(self, source: str) -> str:
        """The changed text of the file.

        Raises:
            ValueError: Nothing there matches.
        """
        changed, count = re.subn(self.pattern, lambda _: self.text, source)
        if not count:
            raise ValueError(f"{self.file} has nothing like {self.pattern}")
        return changed

    def say(self) -> str:
        """Where it is, what is there and what would be."""
        return f"{place(self.file, self.pattern)} -> {self.text.strip()}"


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
        texts: dict[str, str] = {}
        for change in self.changes:
            before = (ROOT / CUDA / change.file).read_text()
            texts[change.file] = change.apply(texts.get(change.file, before))
        return {
            file: text for file, text in texts.items() if text != (ROOT / CUDA / file).read_text()
        }

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
        file: Of csrc/cuda, where that choice is made.
        pattern: The line there.
    """

    name: str
    mode: str
    values: tuple[int, ...]
    file: str
    pattern: str

    def say(self, value: int) -> str:
        """What to change for a value."""
        return f"{self.name} = {value}, chosen in {place(self.file, self.pattern)}"


def _constant(name: str, mode: str, file: str, value: int) -> KernelVariant:
    change = Change(file, rf"constexpr int {name} = \d+;", f"constexpr int {name} = {value};")
    return KernelVariant(f"{name} = {value}", mode, (change,))


def _sum_blocks(blocks: int) -> KernelVariant:
    there = r"(?<=constexpr int kBinBlocks = sizeof\(Real\) == 8 \? 2 : )\d+"
    return KernelVariant(
        f"kBinBlocks = {blocks}", BACKWARD, (Change("bin_backward.cuh", there, str(blocks)),)
    )


VARIANTS = (
    *(_constant("kForwardWarps", FORWARD, "layout.cuh", warps) for warps in (12, 16, 20)),
    KernelVariant(
        "gather unrolled twice",
        FORWARD,
        (Change("forward.cuh", r"#pragma unroll 1\n", "#pragma unroll 2\n"),),
    ),
    *(_sum_blocks(blocks) for blocks in (3, 4, 5)),
)

KNOBS = (
    Knob("forward_bricks", FORWARD, (0, 3, 8), "choose_order.h", r"kBrick\[kMaxAxes\] = .*"),
    Knob("forward_parts", FORWARD, (1, 2, 4), "choose_order.h", r"for \(const int parts : .*"),
    Knob("backward_bins", BACKWARD, (0, 1), "bin_plan.h", r"constexpr int64_t kSamplesPerBin.*"),
    Knob("bin_run", BACKWARD, (64, 256, 512), "bin_plan.h", r"constexpr int64_t kRunOfSamples.*"),
    Knob(
        "workspace_bytes",
        BACKWARD,
        (8 << 20, 256 << 20),
        "bin_plan.h",
        r"constexpr int64_t kWorkspaceBytes.*",
    ),
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


def place(file: str, pattern: str) -> str:
    """The first line that matches: its file, number and text."""
    source = (ROOT / CUDA / file).read_text()
    match = re.search(pattern, source)
    if not match:
        raise ValueError(f"{file} has nothing like {pattern}")
    number = source.count("\n", 0, match.start()) + 1
    return f"{CUDA / file}:{number}: {source.splitlines()[number - 1].strip()}"
