"""The C++ sources compiled for other machines, with the flags of setup.py and no warning.

Zig, which `pip install ziglang` brings, has the headers of every system: its clang stands for
AppleClang and for LLVM's clang++ on Windows. There its kernels are not optimised, which takes a
tenth of the time; STDEFORM_CROSS_LEVEL=-O3 compiles them as users get them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support import build_script
from tests.support.compiled import ROOT, make

X86_ISAS = ("portable", "avx2", "avx512")
ZIG = (sys.executable, "-m", "ziglang")
# By default, Zig's clang lets a program without optimisation check itself, by a library of Zig's.
_ZIG_FLAGS = ("-fno-sanitize=undefined", os.environ.get("STDEFORM_CROSS_LEVEL", "-O0"))


@dataclasses.dataclass(frozen=True)
class Target:
    """A compiler and what it compiles for.

    Attributes:
        system: Its name in COMPILE_FLAGS and LINK_FLAGS of setup.py.
        command: The C++ compiler.
        package: What brings it: a package of PyPI for Zig, else of Debian and Ubuntu.
        isas: Those that setup.py finds the compiler able to build.
        flags: What is added to the flags of setup.py.
    """

    system: str
    command: tuple[str, ...]
    package: str
    isas: tuple[str, ...] = ("portable",)
    flags: tuple[str, ...] = ()

    def missing(self) -> str:
        """Why nothing can be compiled; "" if it can."""
        if self.command[:3] == ZIG:
            found = importlib.util.find_spec("ziglang") and importlib.util.find_spec("pybind11")
            return "" if found else "ziglang and pybind11 are not installed (pip install .[test])"
        if shutil.which(self.command[0]):
            return ""
        return f"{self.command[0]} was not found (Debian and Ubuntu: install {self.package})"

    def compile_command(self, source: str, *flags: str) -> list[str]:
        """Compiles a source with the flags of setup.py and further ones."""
        names = build_script.load()
        command = [*self.command, *names["CXX_FLAGS"], *names["COMPILE_FLAGS"].get(self.system, [])]
        command += [f"-DSTDEFORM_ISA_{isa.upper()}=1" for isa in self.isas]
        return [*command, *flags, *self.flags, "-Werror", "-c", source]

    def compile(self, source: str, *flags: str) -> Path:
        """The object file of a source of the project; compiled unless it is there."""
        output = self._folder() / f"{Path(source).stem}.o"
        make(self.compile_command(source, *flags), output)
        return output

    def kernels(self, isa: str) -> Path:
        """The object file of one instruction set's kernels."""
        flags = build_script.load()["ISA_FLAGS"][isa]
        return self.compile(f"csrc/cpu/isa_{isa}.cpp", *flags)

    def core(self) -> list[Path]:
        """All object files but that of the bindings, in the order of setup.py."""
        sources = build_script.load()["sources"]("cpu/**/*.cpp")
        rest = [source for source in sources if not Path(source).stem.startswith("isa_")]
        return [*map(self.compile, rest), *map(self.kernels, self.isas)]

    def link(self, objects: Sequence[Path], name: str, *flags: str) -> Path:
        """What the linker makes of object files; linked unless it is there."""
        output = self._folder() / name
        make([*self.command, *map(str, objects), *self.flags, *flags], output)
        return output

    @functools.cache  # noqa: B019  # the few targets live as long as the process
    def _folder(self) -> Path:
        """Where output is kept: a name for everything that goes into it."""
        with tempfile.TemporaryDirectory() as folder:  # Zig's clang leaves an empty object file
            version = subprocess.check_output([*self.command, "--version"], cwd=folder)
        digest = hashlib.sha256(version + repr(self).encode() + sys.version.encode())
        files = itertools.chain((ROOT / "csrc").rglob("*.*"), Path(__file__).parent.rglob("*.*"))
        sources = [path for path in files if path.suffix in (".cpp", ".h")]
        for path in [ROOT / "setup.py", *sorted(sources)]:
            digest.update(path.name.encode() + path.read_bytes())
        return ROOT / "build" / "cross" / digest.hexdigest()[:16]


def _zig(system: str, triple: str, isas: tuple[str, ...]) -> Target:
    return Target(system, (*ZIG, "c++", "-target", triple), "ziglang", isas, _ZIG_FLAGS)


ARM = Target("linux", ("aarch64-linux-gnu-g++",), "g++-aarch64-linux-gnu")
# This machine; a program ends when two threads use the same memory without an order.
SANITIZED = Target("linux", ("c++",), "g++", flags=("-O0", "-fsanitize=thread"))
WINDOWS = _zig("win", "x86_64-windows-gnu", X86_ISAS)
MACOS = _zig("macosx", "aarch64-macos", ("portable",))
MACOS_X86 = _zig("macosx", "x86_64-macos", ("portable",))  # the rest is as for Windows
