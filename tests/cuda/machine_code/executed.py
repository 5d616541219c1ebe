"""Counts all instructions that the CUDA kernels execute for a sample, without a GPU.

    python -m tests.cuda.machine_code.executed [SOURCE.cu ...]

runs the machine code for sm_90 of the built `stdeform._C`, or of sources, which it compiles, in the
interpreter of `sass.py` on a part of the paper's encoder, or of Deformable DETR's with
`--workload images`, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.costs import atomics
from benchmarks.workloads import WORKLOADS, make_inputs
from tests.cuda.emulator import emulated, emulator
from tests.cuda.machine_code import machine_code, sass
from tests.cuda.machine_code.machine_code import CLASSES, Kernel
from tests.support.backends import on_emulator, on_machine

# A quarter of the frames and of the heads of the paper's encoder, on as many multiprocessors as
# leave a block of the forward 77 tiles, about as many as it has on an H100; and a quarter of the
# heads of Deformable DETR's encoder, on small images.
PARTS = {
    "video": dataclasses.replace(
        WORKLOADS["paper-encoder"], spatial_shapes=((9, 10, 17),), num_heads=2
    ),
    "images": dataclasses.replace(
        WORKLOADS["detr-encoder"],
        spatial_shapes=((25, 42), (13, 21), (7, 11), (4, 6)),
        num_heads=2,
    ),
}
MULTIPROCESSORS = 8


class Runner:
    """Runs the operator's launches in the interpreter; for `emulated.Machine`.

    Args:
        kernels: Those that may be launched.

    Attributes:
        counts: What each kernel that was has done.
    """

    def __init__(self, kernels: Iterable[Kernel]) -> None:
        self.kernels = {kernel.name: kernel for kernel in kernels}
        self.counts: dict[str, sass.Counts] = {}

    def __call__(
        self,
        mangled: str,
        launch: emulator.Launch,
        parameters: Sequence[tuple[bytes, int]],
        regions: Sequence[tuple[int, int]],
    ) -> None:
        """Runs one launch.

        Raises:
            LookupError: There is no machine code for the kernel.
        """
        name = machine_code.readable([mangled])[0]
        if name not in self.kernels:
            raise LookupError(f"no machine code of {name}")
        what = sass.Launch(launch.grid, launch.block, parameters, launch.dynamic_bytes)
        counts = sass.run(self.kernels[name], what, sass.Memory(regions))
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts


@dataclasses.dataclass(frozen=True)
class Executed:
    """What a kernel executes for a sample.

    Attributes:
        kernel: Its name.
        instructions: Those issued for a warp, in all.
        lines: Of 128 bytes of global memory, each time that a warp touches them.
        passes: Through the banks of shared memory.
        classes: Instructions by class.
    """

    kernel: str
    instructions: float
    lines: float
    passes: float
    classes: Mapping[str, float]


def count(
    kernels: Iterable[Kernel],
    dtype: str,
    *,
    part: str = "video",
    backward: bool = False,
    bins: bool = True,
) -> list[Executed]:
    """Runs the operator and counts.

    Args:
        kernels: The machine code.
        dtype: Of the value; what else is read is float32.
        part: What they run on, of `PARTS`.
        backward: Whether the gradients of all inputs are found, or the result.
        bins: Whether the backward works bin by bin.

    Returns:
        What every launched kernel executes, in the order of the launches. The samples are all of
        the workload, but for the kernel that sums by bins: those that read any corner.
    """
    workload = dataclasses.replace(PARTS[part], dtype=dtype)
    inputs = make_inputs(workload, seed=0)
    samples = inputs.attention_logits.numel()
    reading = int(atomics.sort_into_bins(workload, inputs).samples.sum())
    runner = Runner(kernels)
    machine = emulated.Machine(multiprocessors=MULTIPROCESSORS, tuning={"backward_bins": int(bins)})
    arguments = [each.requires_grad_(backward) for each in inputs[:-1]]
    call = on_emulator("points")
    if backward:
        # Its forward is not what is counted.
        out = call(arguments[0], workload.spatial_shapes, *arguments[1:])
        with on_machine(dataclasses.replace(machine, runner=runner)):
            torch.autograd.grad(out, arguments, inputs.grad_out)
    else:
        with on_machine(dataclasses.replace(machine, runner=runner)):
            call(arguments[0], workload.spatial_shapes, *arguments[1:])
    return [
        _executed(runner.kernels[name], counts, reading if "bin_backward" in name else samples)
        for name, counts in runner.counts.items()
    ]


def _executed(kernel: Kernel, counts: sass.Counts, samples: int) -> Executed:
    classes, lines, passes = collections.Counter[str](), 0, 0
    done = zip(kernel.instructions, counts.issued.tolist(), counts.transfers.tolist(), strict=True)
    for each, issued, transfers in done:
        name = machine_code.classify(each.mnemonic)
        classes[name] += issued
        if name in ("LDS", "STS"):
            passes += transfers
        else:
            lines += transfers
    return Executed(
        kernel.name,
        classes.total() / samples,
        lines / samples,
        passes / samples,
        {name: number / samples for name, number in classes.items()},
    )


def table(rows: Sequence[Executed], *, classes: bool = False) -> str:
    """A Markdown table; with `classes`, of those that any of the kernels has as well."""
    named = [name for name in CLASSES if classes and any(name in row.classes for row in rows)]
    lines = [["kernel", "instructions", "lines", "passes", *named]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        numbers = [row.instructions, row.lines, row.passes]
        numbers += [row.classes.get(name, 0) for name in named]
        lines.append([f"`{row.kernel}`", *(f"{number:.2f}" for number in numbers)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# What `count` is asked for, by a word of the command line.
PASSES: dict[str, dict[str, bool]] = {
    "forward": {},
    "bins": {"backward": True},
    "direct": {"backward": True, "bins": False},
}


def main(words: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.machine_code.executed", description=__doc__
    )
    parser.add_argument("sources", nargs="*", type=Path, help="CUDA files instead of stdeform._C")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the value")
    parser.add_argument("--passes", nargs="+", default=PASSES, choices=PASSES, help="what to run")
    parser.add_argument("--workload", default="video", choices=PARTS, help="on what")
    parser.add_argument("--classes", action="store_true", help="what the instructions are for")
    options = parser.parse_args(words)
    kernels = machine_code.read_sources(options.sources)
    rows = [
        row
        for dtype in options.dtypes
        for name in options.passes
        for row in count(kernels, dtype, part=options.workload, **PASSES[name])
    ]
    print(table(rows, classes=options.classes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
