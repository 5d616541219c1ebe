"""Which of PyTorch's operators have a kernel for a device, by the table it is built from."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

_COMPOSITE = "CompositeExplicitAutograd"


def table() -> Path | None:
    """The table of the PyTorch that is installed, if it is there."""
    spec = importlib.util.find_spec("torchgen")
    folders = spec.submodule_search_locations if spec else None
    found = Path(*folders[:1], "packaged/ATen/native/native_functions.yaml") if folders else None
    return found if found and found.exists() else None


def lacks_kernel(operator: str, backend: str) -> bool:
    """Whether an operator, such as "add.Tensor", is not for this backend, such as "MPS".

    One that is made of others is for all of them, if what it shares its name with is: the forms
    that write to a tensor do its work.
    """
    name, _, overload = operator.partition(".")
    backends = _backends(operator)
    if backends is None or backend in backends:
        return backends is None
    if not any(one.startswith(_COMPOSITE) for one in backends):
        return True
    suffix = f".{overload}" if overload else ""
    forms = f"{name}_{suffix}", f"{name}.{overload}_out" if overload else f"{name}.out"
    return any(_backends(form) is not None and lacks_kernel(form, backend) for form in forms)


def _backends(operator: str) -> set[str] | None:
    """Where it has kernels; None if there is no such operator."""
    entry = _entries().get(operator)
    if entry is None:
        return None
    delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.MULTILINE)
    if delegate:
        return _backends(delegate[1])
    lines = re.search(r"^  dispatch:\n((?:    .*\n)+)", entry, re.MULTILINE)
    if not lines:
        return {_COMPOSITE}
    return {name.strip() for line in lines[1].splitlines() for name in _keys(line)}


def _keys(line: str) -> list[str]:
    return line.split("#")[0].split(":")[0].split(",")


@functools.cache
def _entries() -> dict[str, str]:
    path = table()
    assert path is not None
    _, *entries = re.split(r"^- func: ", path.read_text(), flags=re.MULTILINE)
    return {entry.split("(", 1)[0]: entry for entry in entries}
