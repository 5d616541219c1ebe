"""Which lines and branches of the CUDA sources the problems of operator_main.cpp reach.

    python -m tests.cuda.emulator.coverage

prints a table and the lines that are not reached, and fails if there are any.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.cuda.emulator import build, emulated


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


def measure() -> dict[str, Coverage]:
    """Builds, runs and reads the counts of each file of csrc/, by its name from the root.

    Raises:
        FileNotFoundError: There is no gcov.
        RuntimeError: The problems did not run well; the text is what they said.
    """
    sources = [*emulated.sources(), build.HERE / "operator_main.cpp"]
    program = build.program(sources, build.COVERAGE)
    folders = [path.parent for path in build.objects(sources, build.COVERAGE)[: len(sources)]]
    for folder in folders:
        for old in folder.glob("*.gcda"):
            old.unlink()
    done = build.run(program)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    found: dict[str, Coverage] = collections.defaultdict(Coverage)
    for folder in folders:
        for counts in folder.glob("*.gcda"):
            _add(found, counts)
    return {
        name: found[name]
        for name in sorted(found)
        if name.startswith("csrc/") and found[name].lines
    }


def table(found: Mapping[str, Coverage]) -> str:
    """A Markdown table of the files."""
    rows = ["| file | lines | reached | branches | taken |", "|---|---|---|---|---|"]
    for name, file in found.items():
        reached = len(file.lines) - len(file.missed)
        rows.append(
            f"| {name} | {len(file.lines)} | {reached} | {file.branches} | {file.branches_taken} |"
        )
    return "\n".join(rows)


def main() -> int:
    """Prints what there is to say; 1 if a line was not reached."""
    found = measure()
    print(table(found))
    for name, file in found.items():
        text = (build.ROOT / name).read_text(encoding="utf-8").splitlines()
        for line in file.missed:
            print(f"not reached: {name}:{line}: {text[line - 1].strip()}")
    return int(any(file.missed for file in found.values()))


def _add(found: dict[str, Coverage], counts: Path) -> None:
    """Adds what gcov reads from one object's counts."""
    gcov = shutil.which("gcov")
    if not gcov:
        raise FileNotFoundError("gcov was not found; it comes with g++")
    with tempfile.TemporaryDirectory() as folder:
        command = [gcov, "--json-format", "--branch-probabilities", str(counts)]
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


if __name__ == "__main__":
    sys.exit(main())
