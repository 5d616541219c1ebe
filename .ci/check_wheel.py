"""Stops if a wheel cannot be published: `python .ci/check_wheel.py WHEEL`. Needs only Python."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

MAX_BYTES = 3_000_000  # without CUDA
MAX_GLIBC = 28  # manylinux_2_28


def faults_of(wheel: Path) -> list[str]:
    """Says what is wrong with a wheel: files, record of the build, label, platform and size."""
    faults = []
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        record = json.loads(archive.read("stdeform/_build.json"))
    _, version, _, _, platform = wheel.stem.split("-")
    # Repairing puts what it vendors next to the package, or into a hidden folder of it.
    ours = re.compile(rf"stdeform(-{re.escape(version)}\.dist-info)?/\w")
    if strange := [name for name in names if not ours.match(name)]:
        faults.append(f"it holds {', '.join(strange)}")
    modules = [name for name in names if name.endswith((".so", ".pyd", ".dylib", ".dll"))]
    if [Path(name).name.split(".")[0] for name in modules] != ["_C"] or not record["native"]:
        faults.append(f"it must hold one native core, and holds {', '.join(modules) or 'none'}")
    cuda = record["cuda"] and "cu" + record["cuda"]["version"].partition(".")[0]
    label = version.partition("+")[2] or None
    if label != cuda:
        faults.append(f"its version has the label {label}, and it was built with {cuda}")
    glibc = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)", platform)]
    if "linux" in platform and (not glibc or min(glibc) > MAX_GLIBC):
        faults.append(f"its platform must be manylinux_2_{MAX_GLIBC} or older, got {platform}")
    if not cuda and wheel.stat().st_size > MAX_BYTES:
        faults.append(f"it has {wheel.stat().st_size} bytes, more than {MAX_BYTES}")
    return faults


if __name__ == "__main__":
    wheel = Path(sys.argv[1])
    if faults := faults_of(wheel):
        raise SystemExit(f"{wheel.name}: {'; '.join(faults)}")
