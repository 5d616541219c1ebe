"""How programs end: one sentence and an exit status; and a folder is for one live run."""

from __future__ import annotations

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
