"""C++ sources of the benchmarks, compiled when they are needed and kept for the next time."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_CSRC = Path(__file__).parents[1] / "csrc"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", f"-I{_CSRC}")


def compiler() -> str | None:
    """The C++ compiler that is used, if this machine has one."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((name for name in names if name and shutil.which(name)), None)


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """Loads what a source compiles to.

    Args:
        source: A C++ file; csrc/ is on its include path.

    Raises:
        RuntimeError: There is no C++ compiler.
    """
    command = compiler()
    if command is None:
        raise RuntimeError(f"{source.name} needs a C++ compiler (g++ or clang++)")
    told = subprocess.run(
        [command, "-std=c++17", f"-I{_CSRC}", "-E", str(source)], capture_output=True, check=True
    )
    key = hashlib.sha256(b"\0".join([told.stdout, platform.node().encode(), command.encode()]))
    folder = Path(tempfile.gettempdir()) / f"stdeform-benchmarks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{key.hexdigest()[:16]}.so"
    if not target.exists():
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run([command, *_FLAGS, str(source), "-o", str(fresh)], check=True)
        fresh.rename(target)
    return ctypes.CDLL(str(target))
