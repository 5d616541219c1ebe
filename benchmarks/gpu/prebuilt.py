"""`python -m benchmarks prebuilt`: packs the module that is built in place, for a machine without.

`gpu-check --prebuilt FOLDER` takes it where the build fails, if it is for that Python, that GPU and
these very sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sysconfig
from pathlib import Path

from benchmarks.measure.processes import ROOT
from stdeform import _build

_PACKAGE = ROOT / "stdeform"
_MODULE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
_RECORD = "_build.json"
_SOURCES = "sources.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this command."""
    parser.add_argument("folder", type=Path, help="made if it is not there")


def run(options: argparse.Namespace) -> int:
    """Copies the module with its record, and writes what it was built from.

    Raises:
        SystemExit: There is none, it has no CUDA part, or it is older than a source.
    """
    module = _PACKAGE / _MODULE
    if not module.is_file() or _build.read_record().cuda is None:
        raise SystemExit("nothing is built in place with CUDA; run setup.py build_ext --inplace")
    newest = max(_sources(), key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > module.stat().st_mtime:
        raise SystemExit(f"{newest.relative_to(ROOT)} is newer than the module; build it again")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in (_MODULE, _RECORD):
        shutil.copy(_PACKAGE / name, options.folder)
    (options.folder / _SOURCES).write_text(digest() + "\n")
    print(f"{_MODULE} and {_RECORD} are in {options.folder}")
    return 0


def install(folder: Path, architecture: str) -> str:
    """Copies a packed module into the package.

    Args:
        folder: What `run` has filled.
        architecture: Of the GPU, "90".

    Returns:
        Why it was not done; "" if it was.
    """
    if not (folder / _MODULE).is_file():
        return f"{folder.name}/ has no {_MODULE}: it is for another Python"
    if (folder / _SOURCES).read_text().strip() != digest():
        return f"{folder.name}/ was built from other sources"
    cuda = json.loads((folder / _RECORD).read_text())["cuda"]
    if architecture not in cuda["architectures"]:
        return f"{folder.name}/ was built for {', '.join(cuda['architectures'])}"
    for name in (_MODULE, _RECORD):
        # A new file under the old name: this process may have the old one loaded.
        fresh = _PACKAGE / f"{name}.new"
        shutil.copy(folder / name, fresh)
        fresh.replace(_PACKAGE / name)
    return ""


def digest() -> str:
    """Names the contents of csrc/."""
    found = hashlib.sha256()
    for path in _sources():
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def _sources() -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
