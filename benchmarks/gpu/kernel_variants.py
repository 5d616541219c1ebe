"""What `tune` tries: other constants and lines in csrc/cuda, and what can be forced at run time.

A variant is a change of source lines, which are compiled; a knob is a field of `Tuning`
(csrc/cuda/params.h) and values for it, which are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure.processes import ROOT

FORWARD, BACKWARD = "forward", "backward"
CUDA = Path("csrc", "cuda")


@dataclass(frozen=True)
class KernelVariant:
    """Another set of kernels: a line, or equal lines of one file of csrc/cuda, are others.

    Attributes:
        name: As it is reported; says what to change.
        mode: The mode that it makes a difference to.
        pattern: What is replaced, a regular expression; every match of it in the file.
        text: What takes its place.
        file: Where it is looked for; by default in all files, and taken from the first that has it.
    """

    name: str
    mode: str
    pattern: str
    text: str
    file: str = "*.*"

    @property
    def slug(self) -> str:
        """The name as that of a folder."""
        return re.sub(r"\W+", "-", self.name)

    def files(self) -> dict[str, str]:
        """The changed file of csrc/cuda; none where the variant is what is there anyway.

        Raises:
            ValueError: Nothing there matches.
        """
        for path in sorted((ROOT / CUDA).rglob(self.file)):
            before = path.read_text()
            after, changes = re.subn(self.pattern, lambda _: self.text, before)
            if changes:
                return {str(path.relative_to(ROOT / CUDA)): after} if after != before else {}
        raise ValueError(f"{CUDA}/{self.file} has nothing like {self.pattern}")


class Knob(NamedTuple):
    """A field of `Tuning`, the mode that it makes a difference to, and values to try."""

    name: str
    mode: str
    values: tuple[int, ...]


def _constant(name: str, mode: str, value: str, there: str = "") -> KernelVariant:
    """Another value of a constant; `there` precedes the part that is replaced."""
    pattern = rf"(?<=constexpr int {name} = {re.escape(there)})[^;]+"
    return KernelVariant(f"{name} = {value}", mode, pattern, value)


VARIANTS = (
    *(_constant("kForwardWarps", FORWARD, warps) for warps in ("12", "16", "20")),
    KernelVariant(
        "gather not unrolled", FORWARD, "#pragma unroll 2\n", "#pragma unroll 1\n", "forward.cuh"
    ),
    *(
        _constant("kBinBlocks", BACKWARD, blocks, "sizeof(Real) == 8 ? 2 : ")
        for blocks in ("3", "4", "5")
    ),
    *(_constant("kAhead", BACKWARD, rows) for rows in ("1", "3")),
    _constant("kBinCorners", BACKWARD, "N == 3 ? 2 : 1"),
    KernelVariant(
        *("launches overlap", BACKWARD),
        *(r"(?<=#define STDEFORM_OVERLAP_LAUNCHES )0", "1", "compat.cuh"),
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
