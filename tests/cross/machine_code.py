"""Reads what the compiler made of the CPU kernels for Arm: the multiplications of inner loops."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

from tests.support.loops import innermost

OBJDUMP = "aarch64-linux-gnu-objdump"  # both come with the compiler
NM = "aarch64-linux-gnu-nm"

_BRANCH = re.compile(r"(?:b(?:\.\w+)?|cbn?z|tbn?z)\s.*?([0-9a-f]+) <")
_VECTOR = re.compile(r"fml[as]\s+v\d+\.(?:4s|2d),")
_SCALAR = re.compile(r"f(?:n?madd|n?msub|ml[as])\s+[sd]\d+,")


@dataclasses.dataclass(frozen=True)
class Loop:
    """The instructions of a loop that holds no other, as "fmla v0.4s, v1.4s, v2.s[0]"."""

    instructions: tuple[str, ...]

    @property
    def in_vectors(self) -> int:
        """How many instructions multiply and add vectors of 16 bytes."""
        return sum(map(bool, map(_VECTOR.match, self.instructions)))

    @property
    def in_scalars(self) -> int:
        """How many instructions multiply and add single numbers."""
        return sum(map(bool, map(_SCALAR.match, self.instructions)))


def disassembly(path: Path) -> str:
    """The machine code of an object file for Arm, as text."""
    command = [OBJDUMP, "-dC", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def merged_functions(path: Path) -> list[str]:
    """Functions in an object file of which the linker keeps any one of several copies."""
    command = [NM, "--demangle", "--defined-only", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\w+ W (.+)$", listing, re.MULTILINE)


def inner_loops(listing: str, functions: str) -> list[Loop]:
    """The loops of some functions that hold no other loop.

    Args:
        listing: What `disassembly` returned.
        functions: A regular expression that is searched for in their names, which are those of
            C++ with all template arguments.
    """
    found = []
    for function in listing.split("\n\n"):
        head, _, code = function.partition(">:\n")
        if re.search(functions, head):
            found += _loops(code)
    return found


def _loops(code: str) -> list[Loop]:
    lines = re.findall(r"^ *([0-9a-f]+):\t(.*)$", code, re.MULTILINE)
    instructions = {int(address, 16): text for address, text in lines}
    jumps = []
    for address, text in instructions.items():
        branch = _BRANCH.match(text)
        if branch and min(instructions) <= int(branch[1], 16) <= address:
            jumps.append((int(branch[1], 16), address))
    return [
        Loop(tuple(text for address, text in instructions.items() if first <= address <= last))
        for first, last in innermost(jumps)
    ]
