"""How programs start and end: what they set, one sentence and an exit status, one live run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from defvis.programs import one_line_errors, only_run_in, prepare_folder


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError("no room"), "program: no room"),
        (MemoryError(), r"program: not enough memory \(MemoryError\)"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you\n"
            ),
            r"program: not enough memory \(.*DefaultCPUAllocator",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "program: not enough memory"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "program: a process that loads clips died .* try fewer data.workers",
        ),
    ],
)
def test_one_sentence(error: Exception, sentence: str) -> None:
    with pytest.raises(SystemExit, match=sentence), one_line_errors("program"):
        raise error


def test_other_errors_keep_their_traceback_and_an_interrupt_is_130() -> None:
    with pytest.raises(RuntimeError, match="a fault"), one_line_errors("program"):
        raise RuntimeError("a fault of the program")
    with pytest.raises(SystemExit, match="130"), one_line_errors("program"):
        raise KeyboardInterrupt


# Prints how many pages are new when 20 MB are taken and left again and again.
_TAKE_AND_LEAVE = """
import os, resource
from defvis.programs import prepare_training_on_cpu
prepare_training_on_cpu()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(20):
    if turn == 10:
        before = faults()
    arrays = [np.ones(5_000_000, np.uint8) for _ in range(4)]
    del arrays
print(faults() - before, os.environ.get("GOMP_SPINCOUNT"), os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
@pytest.mark.parametrize(
    ("own", "threads"),
    [
        ({}, ["1000", "PASSIVE"]),
        ({"GOMP_SPINCOUNT": "7", "MALLOC_ARENA_MAX": "2"}, ["7", "PASSIVE"]),
        (
            {
                "OMP_WAIT_POLICY": "ACTIVE",
                "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=100000",
            },
            ["None", "ACTIVE"],
        ),
    ],
)
def test_memory_is_kept_and_what_users_set_stays(own: dict[str, str], threads: list[str]) -> None:
    unset = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    examples = Path(__file__).parents[2] / "examples"
    found = subprocess.run(
        [sys.executable, "-c", _TAKE_AND_LEAVE],
        env=environment | own | {"PYTHONPATH": str(examples)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    pages = 10 * 20_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert (int(found[0]) < pages // 10) == (not own)
    assert found[1:] == threads


def test_one_live_run_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with only_run_in(folder):
        message = r"another run is writing to .*run"
        with pytest.raises(FileExistsError, match=message), only_run_in(folder):
            pass
        with only_run_in(tmp_path / "other"):
            pass
    with only_run_in(folder):
        pass


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("defvis.programs.fcntl", None)
    with only_run_in(tmp_path):
        assert "cannot be locked (Function not implemented)" in capsys.readouterr().err


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/new")):
        with pytest.raises(OSError, match=f"cannot write to {folder}: "):
            prepare_folder(folder)
