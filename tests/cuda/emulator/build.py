"""Compiles CUDA sources together with the emulator, as C++, into a library.

Objects are kept in `build/emulated/`, under a hash of everything that goes into them: a second run
compiles nothing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tests.support.compiled import ROOT, make

HERE = ROOT / "tests" / "cuda" / "emulator"
CACHE = ROOT / "build" / "emulated"
FALLBACK = Path("/usr/local/cuda")  # where CUDA is if nothing says where


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to build: flags for the kernels, the emulator and the linker.

    The emulator itself is never instrumented: it is not what is tested.

    Attributes:
        name: Of the folder in the cache.
        kernels: Flags for everything but the emulator.
        emulator: Flags for the emulator.
        link: Flags for the linker.
    """

    name: str
    kernels: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    link: tuple[str, ...] = ()


PLAIN = Variant("plain")
# The emulator itself checks every access to memory (races, bounds, alignment, unwritten memory),
# and what C++ leaves undefined.
CHECKED = Variant(
    "checked",
    # With these checks GCC does not unroll some loops, and warns by a warning that has no name to
    # switch it off by.
    kernels=(
        "-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow",
        "-Wno-error",
    ),
)
COVERAGE = Variant(
    "coverage",
    kernels=("--coverage", "-O0"),
    emulator=("-DEMULATED_COVERAGE",),
    link=("--coverage",),
)
# Stacks switched by the C library, for processors that the emulator has no assembly for.
PORTABLE = Variant("portable", emulator=("-DEMULATED_UCONTEXT",))


def library(sources: Sequence[Path], variant: Variant = PLAIN) -> Path:
    """Builds a shared object of `sources` and the emulator.

    Args:
        sources: C++ and CUDA files; csrc/ and tests/ are on their include path.
        variant: How to build.

    Returns:
        Its path.

    Raises:
        CompileError: A source does not compile.
        FileNotFoundError: There is no C++ compiler, or there are no CUDA headers.
    """
    return _link(objects(sources, variant), variant)


def extension(sources: Sequence[Path], host: Sequence[Path], flags: Sequence[str]) -> Path:
    """Builds a module of Python that holds kernels; see `library`.

    Args:
        sources: As in `library`, of which the objects are the same.
        host: Its other sources, C++ without kernels.
        flags: For these.
    """
    compiled = [*_compile_all([(path, tuple(flags)) for path in host]), *objects(sources)]
    return _link(compiled, PLAIN, whole=False)  # Python's part comes later


@functools.cache
def compiler() -> str:
    """The C++ compiler: $CXX, else g++, else clang++."""
    named = os.environ.get("CXX", "").split()
    for name in named[:1] or ["g++", "clang++"]:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no C++ compiler (g++ or clang++) was found")


@functools.cache
def cuda_include() -> Path:
    """The folder of the CUDA headers: of $CUDA_HOME, of nvcc, or of the wheels.

    Raises:
        FileNotFoundError: None of them has cuda_runtime.h.
    """
    places = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if nvcc := shutil.which("nvcc"):
        # nvcc reports its own folder: what is on the path may be a link or a wrapper.
        command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", "unused"]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        places += [Path(top.strip()) for top in re.findall(r"TOP=(.*)", output)]
    places.append(FALLBACK)
    places += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*"), reverse=True)
    for place in places:
        if (place / "include" / "cuda_runtime.h").is_file():
            return (place / "include").resolve()
    raise FileNotFoundError(
        "no CUDA headers were found; pip install nvidia-cuda-runtime nvidia-cuda-crt"
        " nvidia-cuda-cccl brings them"
    )


def symbolise(message: str, binary: Path) -> str:
    """Replaces each "{code +0x...}" of an emulator's message by its function and source line."""

    def place(match: re.Match[str]) -> str:
        tool = shutil.which("addr2line")
        if not tool:
            return match[0]
        command = [tool, "-C", "-f", "-i", "-e", str(binary), match[1]]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        lines = re.findall(r"^([^?\n]+:\d+)", output.replace(f"{ROOT}/", ""), re.MULTILINE)
        # The innermost frames may be of the emulator's own headers.
        kernels = [line for line in lines if not line.startswith("tests/cuda/emulator/core/")]
        return str((kernels or lines or [match[0]])[0])

    return re.sub(r"\{code \+(0x[0-9a-f]+)\}", place, message)


def objects(sources: Sequence[Path], variant: Variant = PLAIN) -> list[Path]:
    """Compiles `sources` and the emulator, in this order; see `library`."""
    emulator = sorted((HERE / "core").glob("*.cpp"))
    # Kernels take longest, so they go first.
    work = [(path, variant.kernels) for path in sources]
    return _compile_all([*work, *((path, variant.emulator) for path in emulator)])


def _compile_all(work: Sequence[tuple[Path, tuple[str, ...]]]) -> list[Path]:
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda item: _compile(Path(item[0]).resolve(), item[1]), work))


def _link(compiled: Sequence[Path], variant: Variant, whole: bool = True) -> Path:
    """Links; a `whole` library has every function that it calls, or a library for it."""
    key = hashlib.sha256("\n".join(map(str, compiled)).encode()).hexdigest()[:16]
    output = CACHE / variant.name / f"{compiled[0].stem}-{key}.so"
    if not output.exists():
        own = ["-Wl,--no-undefined"] if whole else []
        make([compiler(), "-shared", *map(str, compiled), *variant.link, *own, "-ldl"], output)
    return output


def _compile(source: Path, flags: tuple[str, ...]) -> Path:
    # The emulator's own warnings are errors; the kernels' are as well, except what CUDA C++
    # writes and C++ does not know (#pragma unroll).
    command = [
        compiler(),
        *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden"),
        *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
        *("-DSTDEFORM_EMULATED", "-Icsrc", "-Itests/cuda"),
        *("-isystem", str(cuda_include())),
        *flags,
    ]
    digest = hashlib.sha256("\n".join([*command, _compiler_version(), _headers()]).encode())
    digest.update(source.read_bytes())
    folder = CACHE / "objects" / f"{source.stem}-{digest.hexdigest()[:16]}"
    output = folder / f"{source.stem}.o"
    if not output.exists():
        # Named from the project's root, as messages will name it.
        shown = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source
        make([*command, "-x", "c++", "-c", str(shown)], output)
    return output


@functools.cache
def _compiler_version() -> str:
    return subprocess.run(
        [compiler(), "--version"], capture_output=True, text=True, check=True
    ).stdout


@functools.cache
def _headers() -> str:
    """A hash of every header that a source could include, CUDA's by their version."""
    digest = hashlib.sha256()
    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh"), *HERE.rglob("*.h")]
    for path in [*sorted(headers), cuda_include() / "cuda_runtime_api.h"]:
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()
