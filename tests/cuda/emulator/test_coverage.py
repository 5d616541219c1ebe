"""Every line of the CUDA sources is run, on the processor, by the problems of problems.py."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from tests.cuda.emulator import build, emulated, problems
from tests.cuda.emulator.emulator import LIFO


@dataclasses.dataclass
class Coverage:
    """What was reached of one file.

    A line counts as reached if one instantiation of its template reached it. Branches are counted
    in every instantiation, without those that an exception takes: many a condition is constant in
    one of them.
    """

    lines: dict[int, int] = dataclasses.field(default_factory=dict)  # line: times reached
    branches: int = 0
    branches_taken: int = 0

    @property
    def missed(self) -> list[int]:
        """The lines that hold code and were not reached."""
        return sorted(line for line, count in self.lines.items() if not count)


def _measure() -> dict[str, Coverage]:
    """Builds, runs and reads the counts of each file of csrc/, by its name from the root."""
    functions = emulated.Machine(build.COVERAGE).emulator.functions
    sources = emulated.sources()
    folders = [path.parent for path in build.objects(sources, build.COVERAGE)[: len(sources)]]
    for old in (old for folder in folders for old in folder.glob("*.gcda")):
        old.unlink()
    functions.emulated_reset_counts()
    for trial in problems.trials():
        trial.check(variant=build.COVERAGE, schedule=LIFO)
    _backward_of_little()
    functions.emulated_write_counts()
    found: dict[str, Coverage] = collections.defaultdict(Coverage)
    for counts in (counts for folder in folders for counts in folder.glob("*.gcda")):
        _add(found, counts)
    return {name: file for name, file in found.items() if name.startswith("csrc/") and file.lines}


def _backward_of_little() -> None:
    """Of no sample, and with two gradients alone, for which the trials do not ask."""
    machine = emulated.Machine(build.COVERAGE, tuning={"backward_bins": 1})
    for batch, needs in ((0, ["value"]), (1, ["value", "scores"])):
        shapes = (1, 1, 1), (1, 1, 1, 3), (1, 1, 1), (1, 1, 3)
        value, positions, scores, reference = (np.zeros((batch, *shape)) for shape in shapes)
        inputs = emulated.Inputs(((1, 1, 1),), (1,), value, positions, scores, reference)
        emulated.backward(inputs, value, machine, needs)


def _add(found: dict[str, Coverage], counts: Path) -> None:
    """Adds what gcov reads from one object's counts."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["gcov", "--json-format", "--branch-probabilities", str(counts)]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        (output,) = Path(folder).glob("*.gcov.json.gz")
        report = json.loads(gzip.decompress(output.read_bytes()))
    for file in report["files"]:
        path = Path(report["current_working_directory"], file["file"]).resolve()
        name = str(path.relative_to(build.ROOT)) if path.is_relative_to(build.ROOT) else str(path)
        coverage = found[name]
        for line in file["lines"]:
            number = line["line_number"]
            coverage.lines[number] = coverage.lines.get(number, 0) + line["count"]
            branches = [branch for branch in line["branches"] if not branch["throw"]]
            coverage.branches += len(branches)
            coverage.branches_taken += sum(branch["count"] > 0 for branch in branches)


def test_every_line_is_reached() -> None:
    found = _measure()
    assert {"csrc/cuda/forward.cuh", "csrc/cuda/backward.cuh", "csrc/core/sampling.h"} <= set(found)
    assert {name: file.missed for name, file in found.items() if file.missed} == {}
    # Instantiations make one file's branches many; most of them must go both ways somewhere.
    branches = sum(file.branches for file in found.values())
    assert sum(file.branches_taken for file in found.values()) > 0.7 * branches
