"""What the programs share: how they start and end, and a look at where they will write."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Name of the file in a folder that `only_run_in` locks.
LOCK = ".lock"

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def prepare_training_on_cpu() -> None:
    """Sets what makes training steps on a CPU faster; call it before torch is imported.

    - Threads of OpenMP that wait spin for some microseconds and then sleep. A step has thousands of
      short parallel regions, and waking a thread takes longer than most of them. With the default
      of libgomp, milliseconds, two runs on one machine would slow each other many times over.
    - glibc keeps the memory that tensors leave, in one arena, and does not return it to the system.
      Otherwise every step gets its large tensors page by page anew.

    Variables of the environment that the user has set stay as they are.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if not tuned and not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(AttributeError, OSError, TypeError):  # Not glibc.
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that it takes
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def one_line_errors(program: str, *expected: type[Exception]) -> Iterator[None]:
    """Ends the program with one sentence and exit status 1 where it would end in a traceback.

    An interrupt from the keyboard ends it with status 130, as shells do. Where the environment has
    DEFVIS_TRACEBACK, the traceback is shown.

    Args:
        program: Name to begin the sentence with.
        expected: Errors with a message for the user, besides `OSError`, `ValueError`, too little
            memory and a worker of a loader that died.
    """
    caught: tuple[type[Exception], ...] = (OSError, ValueError, *expected)
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        known = str(error).strip() or type(error).__name__
        message = _of_the_machine(error) or (known if isinstance(error, caught) else "")
        if not message or os.environ.get("DEFVIS_TRACEBACK"):
            raise
        if "Traceback" in message:  # A loader's worker puts its own before the message.
            message = message.splitlines()[-1]
        sys.exit(f"{program}: {message}")


def _of_the_machine(error: Exception) -> str:
    """What the machine lacked, in words; "" for any other error."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    # torch names neither by a type of its own on the CPU.
    if isinstance(error, MemoryError) or re.search("out of memory|t allocate memory", first):
        return (
            f"not enough memory ({first}); take fewer or smaller frames, clips or slots at a time"
        )
    if re.match(r"DataLoader worker .* (exited|is killed)", first):
        return (
            f"a process that loads clips died ({first}); it may have run out of memory or of "
            "/dev/shm: try fewer data.workers"
        )
    return ""


def prepare_folder(folder: Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Creates a folder and tries to write into it, before work is done for it.

    Args:
        folder: May exist.
        files: Names in it that will be written to as files.
        folders: Likewise as folders.

    Raises:
        OSError: If that is not possible; the message names the folder or the file.
    """
    for name in files:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"cannot write {folder / name}: it is a folder")
    for name in folders:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise NotADirectoryError(f"cannot write to {folder / name}: it is no folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))  # A full disk still has room for an empty file.
    except OSError as error:
        raise type(error)(f"cannot write to {folder}: {error.strerror}") from error


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps every other run out of a folder for as long as this one lives.

    The kernel releases the lock when the process ends, however it ends, so a killed run does not
    keep its folder. The file `.lock` stays. Where the file system has no locks (some network
    folders) or the platform has no `fcntl`, a warning says that nothing keeps a second run out.

    Args:
        folder: Created if it is missing. Of several processes of one run, one locks it.

    Raises:
        FileExistsError: If another live run writes to the folder.
        OSError: If the folder cannot be written to; the message names it.
    """
    prepare_folder(folder)
    with (folder / LOCK).open("ab") as file:
        try:
            _lock(file.fileno())
        except BlockingIOError as error:
            raise FileExistsError(
                f"another run is writing to {folder}; wait until it ends or write elsewhere"
            ) from error
        except OSError as error:
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): "
                "take care that no other run writes to it",
                file=sys.stderr,
            )
        yield


def _lock(descriptor: int) -> None:
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
