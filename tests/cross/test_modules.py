"""The native module for macOS and Windows: compiled without a warning, linked as setup.py links."""

from __future__ import annotations

import re

import pytest

from tests.cross import modules
from tests.cross.machines import MACHINES
from tests.cross.targets import MACOS, MACOS_X86, WINDOWS, Target

# Zig's linker adds these.
ZIG = {"___dso_handle", "__mh_dylib_header"}
# The exceptions of pybind11, which all modules of a process share.
PYBIND11 = r"_*Z(TI|TS|TV)?(NK?)?8pybind11"
CXX_LIBRARY = r"_*(Z|cxa_|gxx_|dynamic_cast)"
SYSTEM_DLL = r"(kernel32|ntdll|api-ms-win-crt-[\w-]+)\.dll"


@pytest.fixture(autouse=True, scope="module")
def _needs_zig() -> None:
    if reason := WINDOWS.missing():
        pytest.skip(reason)


def not_matching(pattern: str, names: set[str]) -> list[str]:
    return sorted(name for name in names if not re.match(pattern, name))


@pytest.mark.parametrize("target", [MACOS, MACOS_X86], ids=["arm64", "x86_64"])
def test_macos(target: Target) -> None:
    found = modules.read_macho(modules.macos(target))
    assert not_matching(PYBIND11, found.exported - ZIG) == ["_PyInit__C"]
    assert found.libraries == {"/usr/lib/libSystem.B.dylib"}
    # Names of the core itself would be missing when the module is loaded; OpenMP's, on most Macs.
    assert not_matching(rf"_+Py|(?!.*8stdeform){CXX_LIBRARY}", found.needed) == []
    assert "_PyModuleDef_Init" in found.needed


def test_windows_objects() -> None:
    """All that can be seen without the libraries of Windows, which take minutes to compile."""
    names = set()
    for path in [modules.bindings(WINDOWS), *WINDOWS.core()]:
        names |= set(re.findall(rb"[ \0]-export:\"?(\w+)", path.read_bytes()))
    exported = {name.decode() for name in names}
    assert not_matching(PYBIND11, exported) == ["PyInit__C"]


def test_windows() -> None:
    if reason := MACHINES["windows"].missing():
        pytest.skip(f"compiled, but not linked and run: {reason}")
    found = modules.read_pe(modules.windows())
    assert not_matching(PYBIND11, found.exported) == ["PyInit__C"]
    assert modules.PYTHON_DLL in found.libraries
    assert not_matching(f"(?i){SYSTEM_DLL}", found.libraries) == [modules.PYTHON_DLL]
