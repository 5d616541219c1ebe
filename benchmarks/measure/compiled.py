"""C++ and CUDA sources of the benchmarks, compiled when they are needed; C++ is kept."""

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

_CSRC = Path(__file__).parents[2] / "csrc"
_CUDA_FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", f"-I{_CSRC}")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread")


def compiler() -> str | None:
    """The C++ compiler that is used, if this machine has one."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((name for name in names if name and shutil.which(name)), None)


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """Loads what a source compiles to.

    Args:
        source: A C++ file that includes the standard library alone.

    Raises:
        RuntimeError: There is no C++ compiler.
    """
    command = compiler()
    if command is None:
        raise RuntimeError(f"{source.name} needs a C++ compiler (g++ or clang++)")
    key = hashlib.sha256(f"{source.read_text()}\0{platform.node()}\0{command}".encode())
    folder = Path(tempfile.gettempdir()) / f"stdeform-benchmarks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{key.hexdigest()[:16]}.so"
    if not target.exists():
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run([command, *_FLAGS, str(source), "-o", str(fresh)], check=True)
        fresh.rename(target)
    return ctypes.CDLL(str(target))


def cuda_tool(name: str) -> str | None:
    """The path of a program of the CUDA toolkit; None if it is not installed."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


@functools.cache
def cuda_library(source: Path, architecture: str) -> ctypes.CDLL:
    """Loads what nvcc makes of a CUDA file, compiled anew in every process.

    Args:
        source: csrc/ is on its include path.
        architecture: A compute capability without its dot, "90".

    Raises:
        RuntimeError: There is no nvcc, or it refuses the source; says what it said.
    """
    command = cuda_tool("nvcc")
    if command is None:
        raise RuntimeError(f"{source.name} needs nvcc")
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "library.so"
        done = subprocess.run(
            [command, *_CUDA_FLAGS, code, str(source), "-o", str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"nvcc refuses {source.name}:\n{done.stdout}{done.stderr}")
        return ctypes.CDLL(str(target))
