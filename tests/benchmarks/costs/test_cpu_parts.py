"""Which part of the CPU kernels code belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.costs import cpu_parts
from benchmarks.costs.cpu_parts import AROUND, OTHER, PARTS, THREADS, part_of
from benchmarks.measure import sampling
from benchmarks.measure.sampling import Sample

CSRC = Path(__file__).parents[3] / "csrc" / "cpu"
PLACES = [(part, place) for part, places in PARTS.items() for place in places]


def line_of(place: str) -> tuple[str, int]:
    """A line in a place of the table."""
    name, _, function = place.partition(": ")
    text = (CSRC / name).read_text()
    if not function:
        return f"/checkout/csrc/cpu/{name}", 1
    definitions = list(cpu_parts._definitions(text, function))
    assert definitions, f"{name} has no function {function}"
    return f"/checkout/csrc/cpu/{name}", definitions[0][1] - 1


@pytest.mark.parametrize(("part", "place"), PLACES)
def test_the_places_of_every_part_exist(part: str, place: str) -> None:
    assert part_of([line_of(place)]) == part


def test_code_belongs_to_the_innermost_part_of_its_stack() -> None:
    corners, positions = (line_of(PARTS[part][0]) for part in ("corners", "positions"))
    kernel, threads = ("csrc/cpu/forward.h", 1), ("csrc/cpu/threads/partition.h", 1)
    library = ("/usr/include/c++/12/bits/stl_algo.h", corners[1])
    assert part_of([library, corners, positions, threads]) == "corners"
    assert part_of([positions, corners]) == "positions"
    assert part_of([library, kernel, threads]) == OTHER
    assert part_of([]) == OTHER


def test_definitions_are_not_calls() -> None:
    source = """\
void f(int x);  // f() {
template <class T>
auto f(T x, int (*g)(int)) const noexcept -> int {
  if (f(x)) {
    return 1;
  }
}
struct S { S() : a(f(1)) {} };
int other_f(int) { return f(2); }
inline int f() { return 3; }
"""
    assert list(cpu_parts._definitions(source, "f")) == [(3, 7), (10, 10)]


def test_shares_are_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = {1: [line_of(PARTS["corners"][0])], 2: []}
    monkeypatch.setattr(sampling, "source_lines", lambda library, addresses: stacks)
    samples = [Sample(1, ""), Sample(2, ""), Sample(1, "libc.so.6"), Sample(None, "")] * 2
    samples += [Sample(1, "libgomp-24e2ab19.so.1.0.0"), Sample(1, "libomp.so")]
    shares = cpu_parts.shares(Path("core.so"), samples)
    assert shares == {"corners": 0.4, THREADS: 0.2, OTHER: 0.2, AROUND: 0.2}
    with pytest.raises(RuntimeError, match="none of 2 samples is in the native core"):
        cpu_parts.shares(Path("core.so"), [Sample(None, "")] * 2)


def test_a_failing_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "missing-compiler")
    with pytest.raises(RuntimeError, match=r"cannot be compiled:[\s\S]*'missing-compiler'"):
        cpu_parts.core_with_lines()
