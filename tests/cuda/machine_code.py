"""Reads what nvcc made of the CUDA kernels: registers, memory, and the instructions of their loops.

    python -m tests.cuda.machine_code [--arch sm_90] [--loops] [SOURCE.cu ...]

prints a Markdown table of every kernel and what is wrong with it: of the built `stdeform._C`, or of
sources, which it compiles. Nothing here needs a GPU.
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from stdeform._build import read_record
from tests.support.loops import innermost

ROOT = Path(__file__).resolve().parents[2]

# What an instruction is for, by the first part of its mnemonic; the first match counts.
CLASSES = {
    "LDG": r"LDG(STS)?|LD",
    "STG": r"STG|ST",
    "LDS": r"LDS",
    "STS": r"STS",
    "local": r"LDL|STL",
    "RED": r"RED|REDG",
    "ATOM": r"ATOM|ATOMG|ATOMS|QSPC",
    "SHFL": r"SHFL|REDUX|VOTE.*|MATCH",
    "BAR": r"BAR|WARPSYNC|BSSY|BSYNC|BREAK|NANOSLEEP|DEPBAR|MEMBAR|FENCE",
    "float": r"F(FMA|ADD|MUL|SEL|SETP|MNMX|SET|SWZADD|CHK|FMA2|ADD2|MUL2)\d*",
    "half": r"H(FMA|ADD|MUL|SETP|SET|MNMX)2.*|HMMA",
    "double": r"D(FMA|ADD|MUL|SETP|SET|MNMX)",
    "MUFU": r"MUFU",
    "convert": r"I2F.*|F2I.*|F2F.*|I2I.*|FRND|F2FP|I2FP",
    "LDC": r"U?LDCU?",
    "uniform": r"U[A-Z].*|R2UR|S2UR",
    "branch": r"BRA|BRX|EXIT|CALL|RET|JMP|BPT|YIELD|BMOV|KILL",
    "integer": r"",
}


# Kernels that need what an atomic addition returns: a place to write to.
AWAITING = ("fill_kernel", "reserve_kernel")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: its address, mnemonic with modifiers, operands, and predicate, as "@!P0"."""

    address: int
    mnemonic: str
    operands: str
    guard: str = ""

    @property
    def target(self) -> int | None:
        """Where a branch goes; None for everything else."""
        if not self.mnemonic.startswith("BRA"):
            return None
        match = re.search(r"0x([0-9a-f]+)", self.operands)
        return int(match[1], 16) if match else None


def classify(mnemonic: str) -> str:
    """The class of `CLASSES` that a mnemonic belongs to."""
    first = mnemonic.split(".")[0]
    return next(name for name, pattern in CLASSES.items() if re.fullmatch(pattern or ".*", first))


@dataclasses.dataclass(frozen=True)
class Loop:
    """The instructions between a branch's target and the branch that goes back to it."""

    instructions: tuple[Instruction, ...]

    @property
    def counts(self) -> collections.Counter[str]:
        """How many instructions of each class."""
        return collections.Counter(classify(each.mnemonic) for each in self.instructions)

    @property
    def loaded_bytes(self) -> int:
        """What a thread loads from global memory in one turn."""
        loads = [each.mnemonic for each in self.instructions if classify(each.mnemonic) == "LDG"]
        return sum(
            next((bits // 8 for bits in (128, 64) if f".{bits}" in mnemonic), 4)
            for mnemonic in loads
        )

    def per_sample(self, loads_per_sample: int, samples_at_once: int = 1) -> float:
        """Instructions of a warp for one sample.

        Args:
            loads_per_sample: LDG of a lane for one sample: by them it shows how often the
                compiler has unrolled the loop.
            samples_at_once: How many samples the lanes of a warp work on together.
        """
        samples = self.counts["LDG"] / loads_per_sample * samples_at_once
        return len(self.instructions) / samples if samples else float("inf")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel as it was compiled for one architecture.

    Attributes:
        name: Readable, without namespaces and parameters.
        registers: Of a thread.
        stack: Bytes of local memory of a thread: arrays, and registers that did not suffice.
        shared: Bytes of static shared memory of a block; on sm_90 with 1024 of the system's own.
        instructions: In the order of their addresses.
    """

    name: str
    registers: int
    stack: int
    shared: int
    instructions: tuple[Instruction, ...]

    def inner_loops(self) -> list[Loop]:
        """The loops that hold no other loop, those that load most bytes of global memory first."""
        jumps = [
            (each.target, each.address)
            for each in self.instructions
            if each.target is not None and each.target < each.address
        ]
        loops = [
            Loop(tuple(each for each in self.instructions if first <= each.address <= last))
            for first, last in innermost(jumps)
        ]
        return sorted(loops, key=lambda loop: -loop.loaded_bytes)

    def faults(self, *, max_registers: int = 255) -> list[str]:
        """What a hot kernel must not have, in words; empty if there is nothing."""
        found = []
        if self.stack:
            found.append(f"{self.stack} bytes of stack")
        if self.registers > max_registers:
            found.append(f"{self.registers} registers, more than {max_registers}")
        # An addition without a used result is a RED. An ATOM waits for what it returns, QSPC finds
        # which memory an address is in, CAS repeats until it wins.
        awaited = "ATOMG" if self.name.startswith(AWAITING) else "nothing"
        kinds = collections.Counter(
            mnemonic
            for mnemonic in (each.mnemonic for each in self.instructions)
            if re.match(r"ATOM|QSPC|LDL|STL|CAS", mnemonic) and not mnemonic.startswith(awaited)
        )
        found += [f"{count} {mnemonic}" for mnemonic, count in sorted(kinds.items())]
        return found


def read_binary(path: Path, arch: str = "sm_90") -> list[Kernel]:
    """Reads the kernels of a cubin, an object file or a library.

    Args:
        path: What nvcc made, or what was linked from it.
        arch: Which of the architectures it was compiled for.

    Returns:
        The kernels, by name; none if there is no machine code for that architecture.

    Raises:
        FileNotFoundError: A tool is missing; the text says what to install.
    """
    code = _disassembly(_cuobjdump("-sass", path, arch))
    resources = _resources(_cuobjdump("-res-usage", path, arch))
    names = [name for name in code if name in resources]
    kernels = [
        Kernel(called, *resources[name], code[name])
        for name, called in zip(names, readable(names), strict=True)
    ]
    return sorted(kernels, key=lambda kernel: kernel.name)


def compile_source(source: Path, folder: Path, arch: str = "sm_90") -> Path:
    """Compiles a source for one architecture, as setup.py does, into a cubin in `folder`.

    Raises:
        FileNotFoundError: There is no nvcc.
        RuntimeError: nvcc refused the source; the text is its messages.
    """
    cubin = Path(folder, f"{Path(source).stem}.{arch}.cubin")
    number = arch.removeprefix("sm_")
    command = [
        *(_nvcc(), *_nvcc_flags(), f"-gencode=arch=compute_{number},code={arch}"),
        *("-cubin", "-o", str(cubin), str(Path(source).resolve())),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc failed:\n{done.stdout}{done.stderr}")
    return cubin


def read_sources(sources: Sequence[Path], arch: str = "sm_90") -> list[Kernel]:
    """Compiles sources and reads their kernels; without any, those of the built `stdeform._C`.

    Raises:
        FileNotFoundError: A tool is missing, or `stdeform._C` is.
        RuntimeError: nvcc refused a source; the text is its messages.
    """
    with tempfile.TemporaryDirectory() as folder:
        binaries = [compile_source(each, Path(folder), arch) for each in sources]
        if not binaries:
            library = built_library()
            if library is None:
                raise FileNotFoundError("stdeform._C is not built; name sources")
            binaries = [library]
        return [kernel for each in binaries for kernel in read_binary(each, arch)]


def built_library() -> Path | None:
    """The native core as it was built in place for this Python; None if it was not."""
    path = ROOT / "stdeform" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    return path if path.is_file() else None


@functools.cache
def installed(arch: str) -> tuple[Kernel, ...]:
    """The operator's kernels, as the installed native core has them.

    Raises:
        LookupError: It has none, or none for this architecture; the text says why.
        FileNotFoundError: A tool is missing; the text says what to install.
    """
    library, record = built_library(), read_record()
    if library is None or not record.cuda:
        raise LookupError(f"no CUDA kernels were built: {record.no_cuda}")
    if arch.removeprefix("sm_") not in record.cuda.architectures:
        raise LookupError(f"the kernels were not built for {arch}")
    return tuple(kernel for kernel in read_binary(library, arch) if "_kernel" in kernel.name)


def table(kernels: Iterable[Kernel], *, loops: bool = False) -> str:
    """A Markdown table; with `loops`, of each kernel's inner loop that loads most."""
    columns = ["kernel", "registers", "stack", "shared", "instructions"]
    if loops:
        columns += ["in its loop", *CLASSES]
    rows = [columns, ["---"] * len(columns)]
    for each in kernels:
        row: list[object] = [each.name, each.registers, each.stack, each.shared]
        row.append(len(each.instructions))
        if loops:
            found = each.inner_loops()
            counts = found[0].counts if found else collections.Counter[str]()
            row += [sum(counts.values()), *(counts[name] for name in CLASSES)]
        rows.append([str(cell) for cell in row])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@functools.cache
def tool(name: str) -> str:
    """A program of the CUDA toolkit: on the path, or of the wheels.

    Raises:
        FileNotFoundError: It is in neither.
    """
    if found := shutil.which(name):
        return found
    for wheel in sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/cu*/bin/{name}")):
        return str(wheel)
    raise FileNotFoundError(f"{name} was not found; pip install nvidia-cuda-{name} brings it")


@functools.cache
def _nvcc() -> str:
    """The CUDA compiler, found as setup.py finds it, or of the wheels."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for place in [*(os.path.join(home, "bin") for home in homes), None, "/usr/local/cuda/bin"]:
        if found := shutil.which("nvcc", path=place):
            return found
    return tool("nvcc")


@functools.cache
def _nvcc_flags() -> tuple[str, ...]:
    """The flags that setup.py compiles with."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NVCC_FLAGS":
            return tuple(ast.literal_eval(node.value))
    raise LookupError("setup.py has no NVCC_FLAGS")


def _cuobjdump(question: str, path: Path, arch: str) -> str:
    # It starts nvdisasm, which it looks for on the path.
    places = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    command = [tool("cuobjdump"), question, "-arch", arch, str(path)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": places}
    ).stdout


def _resources(output: str) -> dict[str, tuple[int, int, int]]:
    """Registers, stack and shared memory by mangled name, as `cuobjdump -res-usage` prints them."""
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    return {
        name: (int(registers), int(stack), int(shared))
        for name, registers, stack, shared in re.findall(pattern, output)
    }


def _disassembly(output: str) -> dict[str, tuple[Instruction, ...]]:
    """Instructions by mangled name, as `cuobjdump -sass` prints them."""
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+)?\s*([A-Z][\w.]*)\s*([^;]*);")
    found = {}
    for part in output.split("Function : ")[1:]:
        name, _, code = part.partition("\n")
        instructions = [
            Instruction(int(address, 16), mnemonic, operands.strip(), guard)
            for address, guard, mnemonic, operands in line.findall(code)
        ]
        while instructions and instructions[-1].mnemonic == "NOP":  # fill up the last line
            instructions.pop()
        found[name.strip()] = tuple(instructions)
    return found


def readable(names: Sequence[str]) -> list[str]:
    """What C++ calls them, without result, namespaces and parameters."""
    demangler = shutil.which("cu++filt") or shutil.which("c++filt")
    if not demangler or not names:
        return list(names)
    demangled = subprocess.run(
        [demangler], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [_shortened(name) for name in demangled]


def _shortened(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "").replace("stdeform::cuda::", "")
    name = re.sub(r"\((?:int|bool|unsigned int)\)(\d+)", r"\1", name.replace("stdeform::", ""))
    depth = 0  # parameters begin at the last parenthesis outside of all others
    for i in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[i], 0)
        if name[i] == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ")


def main(words: Sequence[str]) -> int:
    """Prints the table and the faults; 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.machine_code", description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, help="CUDA files instead of stdeform._C")
    parser.add_argument("--arch", default="sm_90", help="one that they are or can be built for")
    parser.add_argument("--loops", action="store_true", help="what the inner loops consist of")
    options = parser.parse_args(words)
    try:
        kernels = read_sources(options.sources, options.arch)
    except FileNotFoundError as error:
        parser.error(str(error))
    print(table(kernels, loops=options.loops))
    faults = [f"{kernel.name}: {fault}" for kernel in kernels for fault in kernel.faults()]
    print("\n".join(["", *faults]) if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
