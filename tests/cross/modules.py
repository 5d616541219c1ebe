"""`stdeform._C` linked for macOS and Windows, and what such files export and import."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.cross.targets import ROOT, WINDOWS, ZIG, Target
from tests.support import build_script

PYTHON_DLL = f"python{sys.version_info[0]}{sys.version_info[1]}.dll"


@dataclasses.dataclass
class Symbols:
    """What a shared library gives to a process, and takes from it.

    Attributes:
        exported: Names that others may use.
        needed: Names that are found in any library of the process, when it runs.
        libraries: Files that must be there.
    """

    exported: set[str]
    needed: set[str]
    libraries: set[str]


def bindings(target: Target) -> Path:
    """The object file of the bindings."""
    import pybind11

    return target.compile(
        "csrc/bindings.cpp", f"-isystem{_headers()}", f"-isystem{pybind11.get_include()}"
    )


def macos(target: Target) -> Path:
    """The module for macOS.

    Zig cannot make a bundle, and would first compile the C++ library: a dynamic library in which
    that, like Python, is left to the process to find.
    """
    flags = [flag for flag in build_script.load()["LINK_FLAGS"]["macosx"] if flag != "-bundle"]
    objects = [bindings(target), *target.core()]
    return target.link(objects, "_C.so", "-shared", *flags, "-nostdlib", "-lSystem")


def windows() -> Path:
    """The module for Windows. Zig first compiles the C and C++ libraries, which takes minutes."""
    compiled = bindings(WINDOWS)
    imports = compiled.with_name("python.lib")
    definitions = compiled.with_name("python.def")
    used = sorted(set(re.findall(r"__imp_(_?Py\w+)\0", compiled.read_bytes().decode("latin-1"))))
    definitions.write_text(f"LIBRARY {PYTHON_DLL}\nEXPORTS\n" + "\n".join(used) + "\n")
    subprocess.run(
        [*ZIG, "dlltool", "-m", "i386:x86-64", "-d", str(definitions), "-l", str(imports)],
        check=True,
    )
    flags = build_script.load()["LINK_FLAGS"]["win"]
    return WINDOWS.link([compiled, *WINDOWS.core(), imports], "_C.dll", *flags)


def read_macho(path: Path) -> Symbols:
    """Reads a file of macOS."""
    data = path.read_bytes()
    magic, count = struct.unpack_from("<I12xI", data)
    assert magic == 0xFEEDFACF, "not a 64-bit file of macOS"
    found, offset = Symbols(set(), set(), set()), 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, offset)
        if command == 0xC:  # LC_LOAD_DYLIB
            name = offset + struct.unpack_from("<I", data, offset + 8)[0]
            found.libraries.add(_text(data, name))
        if command == 0x2:  # LC_SYMTAB
            symbols, number, strings, _ = struct.unpack_from("<IIII", data, offset + 8)
            for i in range(number):
                entry = struct.unpack_from("<IBBH", data, symbols + 16 * i)
                _add_macho_symbol(found, _text(data, strings + entry[0]), entry[1], entry[3] >> 8)
        offset += size
    return found


def read_pe(path: Path) -> Symbols:
    """Reads a file of Windows, of which each needed name belongs to a library."""
    listing = {
        part: subprocess.run(
            [*ZIG, "objdump", f"--{part}", str(path)], check=True, capture_output=True, text=True
        ).stdout
        for part in ("exports", "imports")
    }
    return Symbols(
        exported=set(re.findall(r"^ +\d+ .*\| (\w+)$", listing["exports"], re.MULTILINE)),
        needed=set(),
        libraries=set(re.findall(r"Import table entry for (\S+):", listing["imports"])),
    )


def _add_macho_symbol(found: Symbols, name: str, kind: int, library: int) -> None:
    is_debug, is_hidden, is_external = kind & 0xE0, kind & 0x10, kind & 0x01
    if is_debug or is_hidden or not is_external:
        return
    if kind & 0x0E:
        found.exported.add(name)
    elif library in (0, 0xFE):  # 1 is the first of `libraries`
        found.needed.add(name)


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


def _headers() -> Path:
    """This Python's headers, with a pyconfig.h for the systems that are not this one."""
    source = Path(sysconfig.get_path("include"))
    folder = ROOT / "build" / "cross" / f"include-{sysconfig.get_config_var('VERSION')}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {path.name: path for path in source.iterdir()}
    files["pyconfig.h"] = Path(__file__).parent / "include" / "pyconfig.h"
    for name, path in files.items():
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(path)
    return folder
