"""The sampler finds inlined code, what it calls elsewhere, and every thread."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.measure import compiled, sampling

SOURCE = """\
#include <cstring>
namespace {
inline void add(float* to) {
  for (int i = 0; i < 4096; ++i) to[i] += 0.5f;
}
inline void clear(float* to) {
  std::memset(to, 0, 1 << 20);
}
}  // namespace
extern "C" void run_add(float* numbers) {
  for (int i = 0; i < 1000; ++i) add(numbers);
}
extern "C" void run_clear(float* numbers) {
  for (int i = 0; i < 100; ++i) clear(numbers);
}
"""
IN_ADD, IN_CLEAR, IN_RUN = {3, 4}, {6, 7}, {9, 10, 11, 12, 13, 14}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = compiled.compiler()
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C++ compiler")
    folder = tmp_path_factory.mktemp("sampled")
    source, target = folder / "sampled.cpp", folder / "sampled.so"
    source.write_text(SOURCE)
    # A checked memset would be one more inlined function.
    options = [
        "-O2",
        "-g1",
        "-U_FORTIFY_SOURCE",
        "-shared",
        "-fPIC",
        str(source),
        "-o",
        str(target),
    ]
    subprocess.run([compiler, *options], check=True)
    return target


def test_inlined_code_and_what_it_calls_are_found_on_every_thread(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    start = threading.Event()

    def work(run: Callable[[object], object]) -> None:
        numbers = (ctypes.c_float * (1 << 18))()
        start.wait()
        while time.thread_time() < 0.3:
            run(numbers)

    # Each is busy in a function of its own.
    threads = [threading.Thread(target=work, args=(loaded[f"run_{i}"],)) for i in ("add", "clear")]
    for thread in threads:
        thread.start()
    with sampling.sampled(library) as samples:
        start.set()
        for thread in threads:
            thread.join()
    inside = [address for address, _ in samples if address is not None]
    assert len(inside) > len(samples) / 2
    lines = sampling.source_lines(library, inside)
    assert set(lines) == set(inside)
    innermost = [lines[address][0] for address in inside if lines[address]]  # the linker's has none
    assert len(innermost) > 0.9 * len(inside)
    assert {Path(path).name for path, _ in innermost} == {"sampled.cpp"}
    numbers_of_lines = {line for _, line in innermost}
    assert numbers_of_lines & IN_ADD
    assert numbers_of_lines & IN_CLEAR  # most of its time is in the C library
    assert numbers_of_lines <= IN_ADD | IN_CLEAR | IN_RUN
    called = [lines[address][0][1] for address, callee in samples if address and callee]  # memset
    assert called
    assert set(called) <= IN_CLEAR
    for stack in lines.values():
        assert len(stack) == 1 or stack[-1][1] in IN_RUN


def test_nothing_is_sampled_without_the_library(library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(library.read_bytes())
    with pytest.raises(RuntimeError, match=r"other\.so is not loaded"), sampling.sampled(other):
        pass


def test_a_line_that_is_unknown_has_no_stack(library: Path) -> None:
    assert sampling.source_lines(library, [0, 1 << 40]) == {0: [], 1 << 40: []}


def test_a_missing_tool_is_told(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="needs addr2line, which is part of binutils"):
        sampling.source_lines(library, [0])
