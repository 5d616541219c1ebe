"""Builds variants of the CUDA kernels side by side, from what the in-place build has left.

Of a variant the float32 and bfloat16 kernels are compiled and what launches them; all other objects
are those of the in-place build, and its build.ninja says how to compile.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.kernel_variants import CUDA, KernelVariant
from benchmarks.measure import processes
from benchmarks.measure.processes import ROOT

_SHARED = ("device", "inst_f16", "inst_f64")  # CUDA sources that are not compiled again
_STEP = re.compile(r"build (\S+): (compile|link) (.*)\n  tool = (.*)\n  flags = (.*)\n")
_USAGE = "-Xptxas=-v"  # says in the log what spills


class NotBuiltError(RuntimeError):
    """There is no in-place build with CUDA to start from."""


def folder() -> Path:
    """Where the in-place build keeps its objects.

    Raises:
        NotBuiltError: There are none.
    """
    for plan in (ROOT / "build").glob(f"native-*-{sys.implementation.cache_tag}/build.ninja"):
        if "inst_f32.cu" in plan.read_text():
            return plan.parent
    raise NotBuiltError("variants need the objects of an in-place build with CUDA")


def build(variants: Sequence[KernelVariant], output: Path, log: Path, seconds: float) -> list[Path]:
    """Builds variants.

    Args:
        variants: Which.
        output: A folder for them, replaced.
        log: What the compilers say.
        seconds: After which those that are not ready are given up.

    Returns:
        The modules that were built, each in a folder named like its variant.
    """
    plan = (folder() / "build.ninja").read_text()
    from ninja import BIN_DIR  # which an in-place build has needed too

    shutil.rmtree(output, ignore_errors=True)
    steps = _STEP.findall(plan)
    text = f"builddir = {output}\n{plan[plan.index('rule ') : plan.index('build ' + steps[0][0])]}"
    modules = []
    for variant in variants:
        place = output / variant.slug
        shutil.copytree(ROOT / "csrc", place / "csrc")
        for file, changed in variant.files().items():
            (place / CUDA / file).write_text(changed)
        text += _steps(steps, place)
        modules.append(place / "_C.so")
    path = output / "build.ninja"
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    # One that does not compile does not keep the others from being built.
    command = [str(Path(BIN_DIR, "ninja")), "-k", "0", "-f", str(path)]
    processes.run(command, seconds, log)
    return [module for module in modules if module.is_file()]


def spills(said: str) -> dict[str, int]:
    """How many kernels of each variant keep registers in memory, from what the compilers say."""
    found: dict[str, int] = {}
    for step in re.split(r"^\[\d+/\d+\] ", said, flags=re.MULTILINE):
        name = re.match(rf"compile \S*/([^/]+)/{CUDA}/", step)
        if count := len(re.findall(r"\b[1-9]\d* bytes spill stores", step)):
            slug = name[1] if name else "?"
            found[slug] = found.get(slug, 0) + count
    return found


def _steps(steps: Sequence[tuple[str, ...]], place: Path) -> str:
    """The part of a build.ninja that makes one variant of the steps of the in-place build."""
    text = ""
    own: list[str] = []
    shared: list[str] = []
    for output, rule, inputs, tool, flags in steps:
        if rule == "link":
            # Of an inline function that several objects hold, the linker keeps the first.
            words = f"{' '.join([*own, *shared])}\n  tool = {tool}\n  flags = {flags}\n"
            text += f"build {place / '_C.so'}: link {words}"
        elif inputs.endswith(".cu") and Path(inputs).stem not in _SHARED:
            own.append(str(place / Path(output).name))
            flags = flags.replace("-Icsrc", f"-I{place / 'csrc'}")
            text += f"build {own[-1]}: compile {place / inputs}\n"
            text += f"  tool = {tool}\n  flags = {flags} {_USAGE}\n"
        else:
            shared.append(output)
    return text
