"""What `tune` tries: other constants and lines in csrc/cuda, and what can be forced at run time.

A variant with a change of the sources is a module of its own, built beside the installed one from
what the in-place build has left. The float32 and bfloat16 kernels are compiled and what launches
them; all other objects are those of the in-place build, and its ninja file says how to compile.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.stage import Stage
from benchmarks.measure.processes import ROOT

FOLDER = ROOT / "build" / "variants"
CUDA = Path("csrc", "cuda")
# The steps that compile again: CUDA sources but those of the device and of other dtypes.
_OWN = re.compile(r": compile csrc/cuda/(?!device|inst_f16|inst_f64)\S+\.cu$", re.MULTILINE)


@dataclass(frozen=True)
class Variant:
    """What is forced at run time, or another set of kernels."""

    name: str  # as it is reported; says what to change
    mode: str = ""  # that it makes a difference to; "" for what is installed
    forced: Mapping[str, int] = field(default_factory=dict, hash=False)  # fields of `Tuning`
    file: str = ""  # in csrc/cuda, in which lines are others; "" where no source changes
    pattern: str = ""  # what is replaced, a regular expression; every match of it in the file
    text: str = ""  # what takes its place

    @property
    def module(self) -> Path:
        """Where its own module is built."""
        return FOLDER / re.sub(r"\W+", "-", self.name) / "_C.so"

    def changed(self) -> str:
        """The text of the changed file.

        Raises:
            ValueError: Nothing there matches, or it is there anyway.
        """
        before = (ROOT / CUDA / self.file).read_text()
        after = re.sub(self.pattern, lambda _: self.text, before)
        if after == before:
            raise ValueError(f"{CUDA}/{self.file} has nothing like {self.pattern} to change")
        return after


def _constant(file: str, mode: str, name: str, *values: str, there: str = "") -> list[Variant]:
    """Other values of a constant; `there` precedes the part that is replaced."""
    pattern = rf"(?<=constexpr int {name} = {re.escape(there)})[^;]+"
    return [Variant(f"{name} = {value}", mode, {}, file, pattern, value) for value in values]


def _forced(mode: str, name: str, *values: int) -> list[Variant]:
    return [Variant(f"{name} {value}", mode, {name: value}) for value in values]


INSTALLED = Variant("installed")
_OVERLAP = r"(?<=#define STDEFORM_OVERLAP_LAUNCHES )0"
_OTHER_BLOCKS = "sizeof(Real) == 8 ? 2 : "
VARIANTS = (
    *_forced("forward", "forward_bricks", 0, 3, 8),
    *_forced("forward", "forward_splits", 1, 2, 4),
    *_forced("backward", "backward_splits", 1, 2, 4),
    *_forced("backward", "backward_bins", 0, 1),
    *_forced("backward", "samples_per_warp", 64, 256, 512),
    *_forced("backward", "workspace_bytes", 8 << 20, 256 << 20),
    *_constant("params.h", "forward", "kForwardWarps", "12"),
    Variant(
        *("gather not unrolled", "forward", {}),
        *("forward.cuh", "#pragma unroll 2\n", "#pragma unroll 1\n"),
    ),
    *_constant("binned/lanes.cuh", "backward", "kBinBlocks", "3", "5", there=_OTHER_BLOCKS),
    *_constant("binned/lanes.cuh", "backward", "kBinCorners", "N == 3 ? 2 : 1"),
    *_constant("binned/sum.cuh", "backward", "kAhead", "1", "3"),
    Variant("launches overlap", "backward", {}, "compat.cuh", _OVERLAP, "1"),
)


def build(stage: Stage) -> bool:
    """The stage that builds the modules of those with a change of the sources."""
    pattern = f"native-*/{sys.implementation.cache_tag}.ninja"
    plans = [path.read_text() for path in (ROOT / "build").glob(pattern)]
    plan = next((plan for plan in plans if "inst_f32.cu" in plan), None)
    if plan is None:
        stage.note("variants need the objects of an in-place build with CUDA")
        return stage.device == "cpu"
    from ninja import BIN_DIR  # which an in-place build has needed too

    chosen = [each for each in VARIANTS if each.file][: 1 if stage.quick else None]
    shutil.rmtree(FOLDER, ignore_errors=True)
    for each in chosen:
        place = each.module.parent
        shutil.copytree(ROOT / "csrc", place / "csrc")
        (place / CUDA / each.file).write_text(each.changed())
    path = FOLDER / "build.ninja"
    path.write_text(_plan(plan, [each.module.parent for each in chosen]))
    # One that does not compile does not keep the others from being built.
    stage.call([str(Path(BIN_DIR, "ninja")), "-k", "0", "-f", str(path)])
    failed = [each.name for each in chosen if not each.module.is_file()]
    if failed:
        stage.note(f"not built: {', '.join(failed)}")
    return not failed


def _plan(plan: str, places: Sequence[Path]) -> str:
    """A ninja file that makes a module in each place, of the one that makes what is installed."""
    rules, *steps, link = re.split(r"^(?=build )", plan, flags=re.MULTILINE)
    folder = rules.split()[2]  # builddir = folder
    own = {step.split()[1].rstrip(":"): step for step in steps if _OWN.search(step)}
    first, rest = link.split("\n", 1)
    shared = [each for each in first.split()[3:] if each not in own]
    text = rules.replace(folder, str(FOLDER))
    for place in places:
        for step in own.values():
            step = step.replace(folder, str(place)).replace("-Icsrc", f"-I{place}/csrc")
            text += step.replace(" csrc/", f" {place}/csrc/")
        objects = [each.replace(folder, str(place)) for each in own]
        # Of an inline function that several objects hold, the linker keeps the first.
        text += f"build {place}/_C.so: link {' '.join([*objects, *shared])}\n{rest}"
    return text
