"""Reads `_build.json`, in which setup.py records how this copy of stdeform was built."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

_RECORD = Path(__file__).with_name("_build.json")


@dataclass(frozen=True)
class NativeBuild:
    """How the C++ part of the native core was built.

    Attributes:
        compiler: Its name and version.
        isas: The instruction sets (ISAs) that were compiled, slowest first.
        refused: The instruction sets that the compiler cannot build, and why.
    """

    compiler: str
    isas: list[str]
    refused: dict[str, str]


@dataclass(frozen=True)
class CudaBuild:
    """How the CUDA part of the native core was built.

    Attributes:
        version: Version of the CUDA toolkit.
        architectures: Those that have machine code, oldest first; "90" is compute capability 9.0.
        ptx: The architecture of the PTX code, which newer devices compile for themselves.
    """

    version: str
    architectures: list[str]
    ptx: str


@dataclass(frozen=True)
class BuildRecord:
    """The parts of the native core; for a part that is missing, the reason."""

    native: NativeBuild | None
    no_native: str
    cuda: CudaBuild | None
    no_cuda: str


def read_record(path: Path | None = None) -> BuildRecord:
    """Reads the record at a path, by default the one beside this file."""
    path = path or _RECORD
    if not path.is_file():
        return _nothing_built("this is a source tree that was never built (run: pip install -e .)")
    facts = json.loads(path.read_text(encoding="utf-8"))
    try:
        native = NativeBuild(**facts["native"]) if facts["native"] else None
        cuda = CudaBuild(**facts["cuda"]) if facts["cuda"] else None
    except TypeError:  # the fields of another version of this file
        return _nothing_built("the sources are newer than what was built (run: pip install -e .)")
    return BuildRecord(native, facts["no_native"], cuda, facts["no_cuda"])


def _nothing_built(reason: str) -> BuildRecord:
    return BuildRecord(native=None, no_native=reason, cuda=None, no_cuda=reason)


def find_hidden_install() -> Path | None:
    """The folder of an installed stdeform with a native core that this unbuilt one hides."""
    if _RECORD.is_file():
        return None
    for distribution in importlib.metadata.distributions(name="stdeform"):
        record = Path(str(distribution.locate_file("stdeform/_build.json")))
        if record.parent != Path(__file__).parent and read_record(record).native:
            return record.parent
    return None
