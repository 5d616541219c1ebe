"""Time by part of the CPU kernels: which functions of csrc/cpu a part consists of.

The native core is compiled a second time, with line tables and otherwise the same, and sampled.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.measure import sampling
from benchmarks.measure.sampling import Line, Sample

_ROOT = Path(__file__).parents[2]
_CSRC = _ROOT / "csrc"
_FOLDER = _ROOT / "build" / "line-tables"

# "file" or "file: function", of csrc/cpu. A sample belongs to the innermost one on its stack, and
# of a file and a function in it to the function.
PARTS = {
    "pack": (
        "packed_heads.h: pack",
        "packed_heads.h: pack_row",
        "packed_heads.h: zero",
        "backward.h: zero_result",
        "prefault.h",
    ),
    "softmax": ("query_block.h: read_scores", "softmax.h"),
    "positions": (
        "query_block.h: read_positions",
        "query_block.h: read_reference",
        "query_block.h: prefetch_record",
    ),
    "corners": ("corners.h: find_chunk",),
    "gather": ("gather.h: gather_block",),
    "dots, scatter": ("gather.h: differentiate_block",),
    "gradients": ("sample_grads.h",),
    "store": (
        "simd.h: store_numbers",
        "query_block.h: write_grads",
        "packed_heads.h: unpack",
        "backward.h: sum_heads",
    ),
}
THREADS = "threads"  # waiting for each other, and all else of OpenMP's runtime
OTHER = "other"  # anything else of the kernels
AROUND = "around"  # Python, PyTorch, and threads without work
ALL_PARTS = (*PARTS, THREADS, OTHER, AROUND)

_RUNTIMES = re.compile(r"lib(gomp|omp|iomp5)\b")


def core_with_lines() -> Path:
    """Compiles the native core with line tables; what was compiled before is kept.

    Raises:
        RuntimeError: The build failed; says what it said.
    """
    command = [sys.executable, "setup.py", "build_ext"]
    # A name of its own for the folder of the objects.
    command += ["--plat-name", _FOLDER.name, "--build-lib", str(_FOLDER)]
    flags = f"{os.environ.get('CXXFLAGS', '')} -g1"
    environment = {"STDEFORM_NATIVE": "1", "STDEFORM_CUDA": "0", "CXXFLAGS": flags}
    print("-- compiling the native core with line tables", flush=True)
    done = subprocess.run(
        command,
        cwd=_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the native core cannot be compiled:\n{done.stdout}{done.stderr}")
    [library] = (_FOLDER / "stdeform").glob(f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}")
    return library


def load_core(library: Path) -> ModuleType:
    """Loads a native core beside the one that the library uses, under another name."""
    spec = importlib.util.spec_from_file_location(f"{_FOLDER.name}._C", library)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shares(library: Path, samples: Sequence[Sample]) -> dict[str, float]:
    """The share of each part in the samples; parts without any are left out.

    Args:
        library: The native core that was sampled.
        samples: Of `sampling.sampled`.

    Raises:
        RuntimeError: No sample is in the core: it was not the one that ran.
    """
    inside = {sample.address for sample in samples if sample.address is not None}
    if not inside:
        raise RuntimeError(f"none of {len(samples)} samples is in the native core")
    stacks = sampling.source_lines(library, inside)
    counts = Counter(_part(sample, stacks) for sample in samples)
    return {part: counts[part] / len(samples) for part in ALL_PARTS if counts[part]}


def _part(sample: Sample, stacks: Mapping[int, Sequence[Line]]) -> str:
    if sample.address is None:
        return AROUND
    # Compilers give no line of their own to the end of a parallel loop.
    if _RUNTIMES.match(sample.callee):
        return THREADS
    return part_of(stacks[sample.address])


def part_of(stack: Sequence[Line]) -> str:
    """The part that code belongs to.

    Args:
        stack: Its lines, innermost first.
    """
    functions, files = _places()
    for path, line in stack:
        name = path.rpartition("csrc/cpu/")[2]
        for first, last, part in functions.get(name, ()):
            if first <= line <= last:
                return part
        if name in files:
            return files[name]
    return OTHER


@functools.cache
def _places() -> tuple[dict[str, list[tuple[int, int, str]]], dict[str, str]]:
    """Parts by file: those of functions, with their first and last line, and those of files."""
    functions: dict[str, list[tuple[int, int, str]]] = {}
    files: dict[str, str] = {}
    for part, places in PARTS.items():
        for place in places:
            name, _, function = place.partition(": ")
            if not function:
                files[name] = part
                continue
            found = list(_definitions((_CSRC / "cpu" / name).read_text(), function))
            functions.setdefault(name, []).extend((*lines, part) for lines in found)
    return functions, files


def _definitions(source: str, function: str) -> Iterator[tuple[int, int]]:
    """First and last line of each definition of a function in C++ source."""
    code = re.sub("//.*", "", source)
    for match in re.finditer(rf"\b{function}(?=\()", code):
        parameters = _end(code, match.end())
        body = re.compile(r"(?:\s|const\b|noexcept\b|->[^;{]*)*(?={)").match(code, parameters)
        if body:
            end = _end(code, body.end())
            yield code.count("\n", 0, match.start()) + 1, code.count("\n", 0, end) + 1


def _end(code: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[({\[]|[)}\]]").finditer(code, start):
        depth += 1 if match[0] in "({[" else -1
        if not depth:
            return match.end()
    raise ValueError(f"a bracket is not closed: {code[start : start + 40]}")
