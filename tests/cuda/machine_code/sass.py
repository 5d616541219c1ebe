"""Runs the machine code of sm_90 on the processor and counts the instructions that it executes.

All lanes of a grid go through the code together, each with its own place in it. Lanes of a warp
that a branch has parted meet again where the code says so (BSYNC, WARPSYNC) and nowhere else. Until
then each part issues its instructions for itself. So what is counted are the issue slots of the
schedulers: an instruction once for a warp, or a part of one, whatever the number of its lanes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.cuda.machine_code.machine_code import Instruction, Kernel
from tests.cuda.machine_code.sass_operations import (
    OPERATIONS,
    PREDICATE,
    REGISTER,
    Operands,
    Registers,
    UnknownInstructionError,
)

Array = NDArray[Any]
WARP = 32
SIZE = 16  # bytes of an instruction

# Where launches put a kernel's parameters and sizes in constant bank 0, in bytes.
PARAMETERS = 0x210
_BLOCK, _GRID = 0x0, 0xC

# What a lane can be waiting for, beside the barriers B0 to B15.
_NOTHING, _WARP, _BLOCK_BARRIER = -1, 16, 17
# What changes nothing that a lane can see: all is in order here, and nobody waits for memory.
_IDLE = {"NOP", "YIELD", "DEPBAR", "MEMBAR", "ERRBAR", "CCTL", "NANOSLEEP", "LDGDEPBAR"}


class SassError(RuntimeError):
    """Machine code that breaks a rule; the text names the kernel and the instruction."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What every instruction of a kernel has done.

    Attributes:
        issued: How often it was issued, for a warp or a part of one.
        transfers: Of global memory, lines of 128 bytes that its lanes touched each time. Of shared
            memory, words of the bank that they wanted most of; lanes that want 8 or 16 bytes go in
            halves or quarters of a warp, each of which counts for itself.
    """

    issued: Array
    transfers: Array

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.issued + other.issued, self.transfers + other.transfers)


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        grid: Blocks along x, y, z.
        block: Threads along x, y, z.
        parameters: Bytes and alignment of each.
        dynamic_bytes: Of shared memory.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: Sequence[tuple[bytes, int]]
    dynamic_bytes: int = 0

    def constants(self) -> bytes:
        """Constant bank 0, as the kernel sees it."""
        bank = bytearray(PARAMETERS)
        for at, sizes in ((_BLOCK, self.block), (_GRID, self.grid)):
            bank[at : at + 12] = np.array(sizes, np.uint32).tobytes()
        for content, alignment in self.parameters:
            bank += bytes(-len(bank) % alignment) + content
        return bytes(bank + bytes(16))


class Memory:
    """Memory that kernels may touch, at its addresses in this process.

    Args:
        regions: First address and size of each piece, in bytes.
    """

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        known = sorted((start, size) for start, size in regions if size) or [(0, 0)]
        self._starts = np.array([start for start, _ in known], np.int64)
        self._ends = np.array([start + size for start, size in known], np.int64)
        # From one multiple of 16 to another, so that it can be seen in larger units than its own.
        self._bytes = [
            np.ctypeslib.as_array(
                (ctypes.c_ubyte * (start % 16 + size + -(start + size) % 16)).from_address(
                    start - start % 16
                )
            )
            for start, size in known
        ]

    def find(
        self, addresses: Array, size: int, dtype: type
    ) -> Iterator[tuple[Array, Array | slice, Array]]:
        """Finds `size` bytes at each address.

        Yields:
            For each piece of memory, all of it as an array, which of the addresses lie in it, and
            where in the array.

        Raises:
            ValueError: Not all these bytes may be touched; the text is the address.
        """
        piece = np.searchsorted(self._starts, addresses, "right") - 1
        wrong = (piece < 0) | (addresses + size > self._ends[piece]) | (addresses % size != 0)
        if wrong.any():
            raise ValueError(f"{size} bytes at {addresses[wrong][0]:#x}")
        for i in [int(piece[0])] if (piece == piece[0]).all() else np.unique(piece).tolist():
            which = slice(None) if (piece == i).all() else np.flatnonzero(piece == i)
            start = int(self._starts[i]) // 16 * 16
            content = self._bytes[i].view(dtype)
            yield content, which, (addresses[which] - start) // content.itemsize


class Grid:
    """The lanes of one launch.

    Args:
        kernel: What is run.
        launch: On what.
        memory: What it may touch.
    """

    def __init__(self, kernel: Kernel, launch: Launch, memory: Memory) -> None:
        self._kernel = kernel
        self._memory = memory
        threads = int(np.prod(launch.block))
        per_block = (threads + WARP - 1) // WARP * WARP
        self._blocks = int(np.prod(launch.grid))
        self._count = count = self._blocks * per_block
        self._lanes = np.arange(count)
        thread, block = self._lanes % per_block, self._lanes // per_block
        self._registers = Registers(count, launch.constants())
        for name, sizes, number in (("TID", launch.block, thread), ("CTAID", launch.grid, block)):
            for axis in range(3):
                self._registers.special[f"SR_{name}.{'XYZ'[axis]}"] = number % sizes[axis]
                number = number // sizes[axis]
        lane = (self._lanes % WARP).astype(np.uint64)
        self._registers.special |= {
            "SR_LANEID": lane,
            "SR_LTMASK": (np.uint64(1) << lane) - np.uint64(1),
            "SR_CgaCtaId": np.zeros(1),
        }
        for name, number in self._registers.special.items():
            self._registers.special[name] = number.astype(np.uint32)
        shared = (kernel.shared + launch.dynamic_bytes + 15) // 16 * 16
        self._shared_content = np.full(self._blocks * shared + 16, 0xFF, np.uint8)
        start = self._shared_content.ctypes.data
        start += -start % 16
        self._shared = Memory([(start, self._blocks * shared)])
        self._shared_start = start + block * shared
        self._shared_bytes = shared

        self._at = np.zeros(count, np.int64)  # instruction, by its number
        self._alive = thread < threads
        self._waits = np.full(count, _NOTHING)
        # Lanes that are together have the first of them in common.
        self._party = self._lanes // WARP * WARP
        self._meetings = np.zeros((16, count), np.int64)  # who meets at which barrier; 0: does not
        self._number_of_meetings = 0
        self._issued = np.zeros(len(kernel.instructions), np.int64)
        self._transfers = np.zeros(len(kernel.instructions), np.int64)
        self._now = 0
        self._steps: dict[int, tuple[Callable[[Array], None], bool]] = {}

    def run(self) -> Counts:
        """Runs the kernel to its end.

        Raises:
            UnknownInstructionError: The kernel came to one that the interpreter does not know.
            SassError: The kernel broke a rule.
        """
        with np.errstate(all="ignore"):
            while self._alive.any():
                self._advance()
        return Counts(self._issued, self._transfers)

    def _advance(self) -> None:
        """Lets the lanes that are furthest behind go on, to where others are or may be."""
        ready = self._alive & (self._waits == _NOTHING)
        places = self._at[ready]
        if not places.size:
            raise self._error("the lanes wait for each other")
        now = int(places.min())
        here = ready & (self._at == now)
        ahead = places[places > now]
        until = int(ahead.min()) if ahead.size else len(self._kernel.instructions)
        parties = int(np.count_nonzero(here & (self._party == self._lanes)))
        while True:
            self._now = now
            self._issued[now] += parties
            if now not in self._steps:
                self._steps[now] = self._step(self._kernel.instructions[now])
            run, jumps = self._steps[now]
            now += 1
            if jumps:
                self._at[here] = now
                run(here)
                return
            try:
                run(here)
            except ValueError as error:
                raise self._error(f"no access to {error}") from None
            if now >= until:
                self._at[here] = now
                return

    def _error(self, text: str) -> SassError:
        return SassError(self._explained(self._kernel.instructions[self._now], text))

    def _explained(self, each: Instruction, text: str) -> str:
        shown = f"{each.guard} {each.mnemonic} {each.operands}".strip()
        return f"{self._kernel.name} at {each.address:#x}, {shown}: {text}"

    # -- what instructions do ----------------------------------------------------------------

    def _step(self, each: Instruction) -> tuple[Callable[[Array], None], bool]:
        """What an instruction does to the lanes of a mask, and whether lanes may go elsewhere."""
        first, *parts = each.mnemonic.split(".")
        name = re.sub(r"^U(?=[A-Z])|(?<=S2)UR$", "", first)
        name = {"S2": "S2R", "VOTEU": "VOTE"}.get(name, name)
        text = each.operands.replace(".reuse", "")
        texts = [part.strip() for part in text.split(",")] if text else []
        guard = self._registers.predicate(each.guard[1:]) if each.guard else None
        try:
            if name in _FLOW:
                return self._flow("BRA.DIV" if "DIV" in parts else name, texts, guard), True
            run = self._compute(name, set(parts), texts)
        except UnknownInstructionError as error:
            raise UnknownInstructionError(self._explained(each, str(error))) from None
        if guard is None:
            return run, False

        def guarded(here: Array) -> None:
            active = here & guard()
            if active.any():
                run(active)

        return guarded, False

    def _compute(self, name: str, parts: set[str], texts: list[str]) -> Callable[[Array], None]:
        if name in _IDLE:
            return lambda active: None
        if name == "R2P":
            return self._unpack_predicates(texts)
        operands = Operands(self._registers, name, parts - {"MMA"}, texts)
        among = {
            "SHFL": self._shuffle,
            "VOTE": self._vote,
            "REDUX": self._reduce,
            "R2UR": self._to_uniform,
        }
        if name in among:
            results = among[name](operands)
        elif name in ("LDG", "LD", "LDS", "STG", "ST", "STS", "RED", "REDG", "ATOMG"):
            return self._access(name, operands)
        elif name in OPERATIONS:
            compute = OPERATIONS[name](operands)
            results = lambda active: compute()  # noqa: E731
        else:
            raise UnknownInstructionError("the interpreter does not know it")
        rows = operands.written()

        def run(active: Array) -> None:
            for row, result in zip(rows, results(active), strict=False):
                np.copyto(row, result, where=active)

        return run

    def _unpack_predicates(self, texts: list[str]) -> Callable[[Array], None]:
        if texts[0] != "PR" or len(texts) != 3:
            raise UnknownInstructionError(f"R2P of {', '.join(texts)}")
        word = self._registers.words[self._registers.word(texts[1])]
        chosen = [i for i in range(7) if int(texts[2], 16) >> i & 1]

        def run(active: Array) -> None:
            for i in chosen:
                bit = (word >> np.uint32(i) & np.uint32(1)).astype(bool)
                np.copyto(self._registers.predicates[i], bit, where=active)

        return run

    # -- among the lanes of a warp -----------------------------------------------------------

    def _shuffle(self, o: Operands) -> Callable[[Array], Sequence[Array]]:
        o.only("IDX", "UP", "DOWN", "BFLY")
        value, which, limits = (o.integer(i) for i in range(3))
        lane = self._lanes % WARP

        def compute(active: Array) -> Sequence[Array]:
            by, packed = which().astype(np.int64), limits().astype(np.int64)
            clamp, segment = packed & 31, packed >> 8 & 31
            least, most = lane & segment, (lane & segment) | (clamp & ~segment)
            if o.has("IDX"):
                source = least | (by & 31 & ~segment)
            else:
                by = by & 31
                source = lane - by if o.has("UP") else lane + by if o.has("DOWN") else lane ^ by
            inside = source >= most if o.has("UP") else source <= most
            source = np.where(inside, source, lane) + self._lanes // WARP * WARP
            if not active[source[active]].all():
                raise self._error("it reads a lane that does not take part")
            return (inside, np.broadcast_to(value(), lane.shape)[source])[
                0 if PREDICATE.fullmatch(o.destinations[0]) else 1 :
            ]

        return compute

    def _together(self, combine: np.ufunc, words: Array, who: Array) -> Array:
        """For each lane the words of its party's lanes, of those in `who`, combined."""
        found = np.zeros(self._count, words.dtype)
        combine.at(found, self._party[who], words[who])
        return found[self._party]

    def _vote(self, o: Operands) -> Callable[[Array], Sequence[Array]]:
        o.only("ANY", "ALL", "EQ")
        says = o.predicate(0)

        def compute(active: Array) -> Sequence[Array]:
            bits = np.uint32(1) << (self._lanes % WARP).astype(np.uint32)
            yes = self._together(np.bitwise_or, bits, active & says())
            everybody = self._together(np.bitwise_or, bits, active)
            agreed = {
                "ANY": yes != 0,
                "ALL": yes == everybody,
                "EQ": (yes == 0) | (yes == everybody),
            }[next(iter(o.parts))]
            if PREDICATE.fullmatch(o.destinations[0]):
                return (agreed,)
            return yes, agreed

        return compute

    def _reduce(self, o: Operands) -> Callable[[Array], Sequence[Array]]:
        o.only("SUM", "OR", "XOR")
        combine = {"SUM": np.add, "OR": np.bitwise_or, "XOR": np.bitwise_xor}[next(iter(o.parts))]
        word = o.integer(0)
        return lambda active: (self._together(combine, word(), active),)

    def _to_uniform(self, o: Operands) -> Callable[[Array], Sequence[Array]]:
        o.only()
        word = o.integer(0)

        def compute(active: Array) -> Sequence[Array]:
            first = np.zeros(self._count, np.int64)
            lanes = self._lanes[active][::-1]
            first[self._party[lanes]] = lanes
            return (np.broadcast_to(word(), self._lanes.shape)[first[self._party]],)

        return compute

    # -- memory ------------------------------------------------------------------------------

    def _access(self, name: str, o: Operands) -> Callable[[Array], None]:
        shared = name in ("LDS", "STS")
        adds = name in ("RED", "REDG", "ATOMG")
        texts = o.destinations + o.sources
        place = next(text for text in texts if "[" in text)
        address = self._address(place.removeprefix("desc").split("[", 2)[-1].rstrip("]"))
        o.only(
            *("E", "128", "64", "U16", "S16", "U8", "S8", "CONSTANT", "STRONG", "GPU", "SYS"),
            *("ADD", "F32", "F32x2", "F32x4", "FTZ", "RN", "S32", "EF", "EL", "LTC128B", "SM"),
        )
        if adds and not o.has("ADD"):
            raise UnknownInstructionError(f"{name} other than ADD")
        narrow = {"U16": np.uint16, "S16": np.int16, "U8": np.uint8, "S8": np.int8}
        kind = next((narrow[part] for part in o.parts if part in narrow), np.uint32)
        if adds and o.has("F32", "F32x2", "F32x4"):
            kind = np.float32
        unit = np.dtype(kind).itemsize
        extended = np.int32 if np.dtype(kind).kind == "i" else np.uint32
        words = 4 if o.has("128", "F32x4") else 2 if o.has("64", "F32x2") else 1
        if adds and o.has("64"):
            raise UnknownInstructionError(f"{name} of 64 bits")
        memory = self._shared if shared else self._memory
        register = texts[-1] if "[" not in texts[-1] else o.destinations[0]
        rows = self._registers.several(register, words)
        writes = adds or name in ("STG", "ST", "STS")
        old = None
        if name == "ATOMG":
            old = self._registers.destination(
                next(text for text in o.destinations if REGISTER.fullmatch(text))
            )
        elif not writes:
            rows = [self._registers.destination(register, i) for i in range(words)]

        def run(active: Array) -> None:
            at = address()[active]
            if shared:
                if (at + unit * words > self._shared_bytes).any():
                    raise ValueError(f"shared memory at {at.max():#x}")
                at = at + self._shared_start[active]
            lanes = np.flatnonzero(active)
            number = self._passes(lanes, at, unit * words) if shared else self._lines(lanes, at)
            self._transfers[self._now] += number
            for content, which, index in memory.find(at, unit * words, kind):
                touching = lanes[which]
                for i, row in enumerate(rows):
                    if old is not None:
                        pairs = zip(index, row[touching], strict=True)
                        old[touching] = [self._add(content, *each) for each in pairs]
                    elif adds:
                        np.add.at(content, index + i, row[touching].view(kind))
                    elif writes:
                        content[index + i] = row[touching].astype(kind)
                    else:  # signs are extended
                        row[touching] = content[index + i].astype(extended).astype(np.uint32)

        return run

    def _lines(self, lanes: Array, at: Array) -> int:
        """Lines of global memory that each party touches, in all."""
        line = at // 128
        return len(_runs((line - line.min()) * self._count + self._party[lanes])[0])

    def _passes(self, lanes: Array, at: Array, size: int) -> int:
        """Words that each party wants of the bank that it wants most of, in all."""
        together = WARP * 4 // max(size, 4)
        group = self._party[lanes] * 4 + lanes % WARP // together
        words = (at - at.min() // 128 * 128) // 4
        words = np.concatenate([words + i for i in range(max(size // 4, 1))])
        span = int(words.max()) // 32 * 32 + 32
        wanted, _ = _runs(np.resize(group, words.shape) * span + words)
        banks, number = _runs(wanted // span * 32 + wanted % 32)
        _, of_group = _runs(banks // 32)
        return int(np.maximum.reduceat(number, np.cumsum(of_group) - of_group).sum())

    @staticmethod
    def _add(content: Array, index: int, number: np.uint32) -> Any:
        """Adds to one place and returns what was there before."""
        before = content[index]
        content[index] = before + number
        return before

    def _address(self, text: str) -> Callable[[], Array]:
        """What computes an address from "R2.64+UR4+-0x10"."""
        terms: list[Callable[[], Array]] = []
        offset = 0
        for term in text.replace("]", "").split("+"):
            name, _, kind = term.partition(".")
            if not REGISTER.fullmatch(name):
                offset += int(term, 16)
            elif kind == "64":
                low, high = self._registers.several(name, 2)
                terms.append(
                    lambda low=low, high=high: low.astype(np.int64) | high.astype(np.int64) << 32
                )
            elif kind:
                raise UnknownInstructionError(f"the address {text}")
            else:
                row = self._registers.words[self._registers.word(name)]
                terms.append(lambda row=row: row.astype(np.int64))
        nothing = np.full(self._count, offset)
        return lambda: sum((term() for term in terms), nothing)

    # -- where lanes go ----------------------------------------------------------------------

    def _flow(
        self, name: str, texts: list[str], guard: Callable[[], Array] | None
    ) -> Callable[[Array], None]:
        """What sends lanes elsewhere, ends them or lets them wait."""
        also = [self._registers.predicate(text) for text in texts if PREDICATE.fullmatch(text)]
        conditions = also + ([guard] if guard else [])
        act = getattr(self, _FLOW[name])
        others = [text for text in texts if not PREDICATE.fullmatch(text)]

        def run(here: Array) -> None:
            active = here
            for condition in conditions:
                active = active & condition()
            act(here, active, others)

        return run

    def _branch(self, here: Array, active: Array, texts: list[str]) -> None:
        self._at[active] = int(texts[-1], 16) // SIZE
        self._part(here, active)

    def _branch_if_parted(self, here: Array, active: Array, texts: list[str]) -> None:
        # The second way through what needs all lanes of a warp, for warps that are not together.
        warps = np.unique(self._lanes[here] // WARP)
        parties = np.unique(self._party[here])
        if len(parties) > len(warps) or (self._alive & ~here).reshape(-1, WARP)[warps].any():
            raise self._error("the lanes of a warp are not together")

    def _return(self, here: Array, active: Array, texts: list[str]) -> None:
        name, base = texts[0].split()
        low, _ = self._registers.several(name, 2)
        self._at[active] = (low[active].astype(np.int64) + int(base, 16)) // SIZE
        self._part(here, active)

    def _exit(self, here: Array, active: Array, texts: list[str]) -> None:
        self._alive &= ~active
        self._part(here, active)
        self._release()

    def _begin_meeting(self, here: Array, active: Array, texts: list[str]) -> None:
        self._number_of_meetings += self._count
        row = self._meetings[int(texts[0][1:])]
        np.copyto(row, self._party + self._number_of_meetings, where=active)

    def _leave_meeting(self, here: Array, active: Array, texts: list[str]) -> None:
        self._meetings[int(texts[0][1:])][active] = 0
        self._release()

    def _meet(self, here: Array, active: Array, texts: list[str]) -> None:
        barrier = int(texts[0][1:])
        self._waits[active & (self._meetings[barrier] != 0)] = barrier
        self._release()

    def _meet_warp(self, here: Array, active: Array, texts: list[str]) -> None:
        if texts or not self._kernel.instructions[self._now].mnemonic.endswith(".ALL"):
            raise self._error("the interpreter knows WARPSYNC.ALL only")
        self._waits[active] = _WARP
        self._release()

    def _meet_block(self, here: Array, active: Array, texts: list[str]) -> None:
        if texts != ["0x0"]:
            raise self._error("the interpreter knows the barrier of the whole block only")
        self._waits[active] = _BLOCK_BARRIER
        self._release()

    def _part(self, here: Array, active: Array) -> None:
        """Parts those that have gone (`active`) from those that have not, where there are both."""
        lanes = self._lanes[here]
        if active[lanes].all() or not active[lanes].any():
            return
        self._join(lanes, self._party[lanes] * 2 + active[lanes])

    def _join(self, lanes: Array, keys: Array) -> None:
        """Makes a party of all lanes with the same key."""
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        self._party[lanes] = lanes[first[which]]

    def _release(self) -> None:
        """Lets those go on that have waited for nobody but each other."""
        for reason in np.unique(self._waits[self._alive]):
            waiting = self._alive & (self._waits == reason)
            if reason == _NOTHING:
                continue
            if reason == _BLOCK_BARRIER:
                blocks = (waiting == self._alive).reshape(self._blocks, -1).all(1)
                self._waits[waiting & np.repeat(blocks, self._count // self._blocks)] = _NOTHING
                continue
            meetings = self._lanes // WARP + 1 if reason == _WARP else self._meetings[reason]
            absent = meetings[self._alive & (meetings != 0) & ~waiting]
            lanes = self._lanes[waiting]
            if absent.size:
                lanes = lanes[~np.isin(meetings[lanes], absent)]
            self._join(lanes, meetings[lanes])
            self._waits[lanes] = _NOTHING
            if reason != _WARP:
                meetings[lanes] = 0


def _runs(keys: Array) -> tuple[Array, Array]:
    """The keys in their order without repetition, and how often each occurs."""
    keys = np.sort(keys)
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.diff(np.append(first, len(keys)))


_FLOW: Mapping[str, str] = {
    "BRA": "_branch",
    "EXIT": "_exit",
    "BRA.DIV": "_branch_if_parted",
    "CALL": "_branch",
    "RET": "_return",
    "BSSY": "_begin_meeting",
    "BSYNC": "_meet",
    "BREAK": "_leave_meeting",
    "WARPSYNC": "_meet_warp",
    "ENDCOLLECTIVE": "_meet_warp",
    "BAR": "_meet_block",
}


def run(kernel: Kernel, launch: Launch, memory: Memory) -> Counts:
    """Runs a kernel.

    Args:
        kernel: As `machine_code.read_binary` returns it, for sm_90.
        launch: How it is launched.
        memory: What it may touch; its results are written there.

    Returns:
        What each of its instructions has done.

    Raises:
        UnknownInstructionError: It executed one that the interpreter does not know.
        SassError: It broke a rule: touched other memory, shuffled from a lane that was not there.
    """
    return Grid(kernel, launch, memory).run()
