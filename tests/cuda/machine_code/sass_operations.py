"""What each instruction of sm_90 computes, on all lanes of a grid at once.

`OPERATIONS` has a function for every mnemonic's first part. It is given the instruction's
`Operands` once and returns what computes the results, again and again; the results go to the
destinations in their order. The uniform datapath is no different: its registers hold the same
number on every lane.
What is not here is refused, never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Get = Callable[[], Array]
Compute = Callable[[], Sequence[Array]]

PREDICATE = re.compile(r"(!?)U?P([0-6T])")
REGISTER = re.compile(r"(U?)R(\d+|Z)")
_CONSTANT = re.compile(r"c\[0x0\]\[(U?R(?:\d+|Z))?\+?(0x[0-9a-f]+)?\]")
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class UnknownInstructionError(NotImplementedError):
    """An instruction that the interpreter does not know, or not in this form."""


class Registers:
    """The registers of `count` lanes, and the constants that all of them see.

    Attributes:
        words: [321, count] uint32: R0 to R254, RZ, UR0 to UR62, URZ and what nobody reads.
        predicates: [17, count]: P0 to P6, PT, UP0 to UP6, UPT and what nobody reads.
        constants: The bytes of bank 0.
    """

    def __init__(self, count: int, constants: bytes) -> None:
        self.words = np.zeros((321, count), np.uint32)
        self.predicates = np.zeros((17, count), bool)
        self.predicates[[7, 15]] = True
        self.constants = np.frombuffer(constants, np.uint8)
        self.special: dict[str, Array] = {}

    def word(self, name: str) -> int:
        """The row of a register."""
        match = REGISTER.fullmatch(name)
        if not match:
            raise UnknownInstructionError(f"{name} for a register")
        if match[1]:
            return 256 + (63 if match[2] == "Z" else int(match[2]))
        return 255 if match[2] == "Z" else int(match[2])

    def predicate(self, name: str) -> Get:
        """What reads a predicate, or its opposite."""
        match = PREDICATE.fullmatch(name)
        if not match:
            raise UnknownInstructionError(f"{name} for a predicate")
        row = self.predicates[(8 if "U" in name else 0) + (7 if match[2] == "T" else int(match[2]))]
        return (lambda: ~row) if match[1] else (lambda: row)

    def destination(self, name: str, after: int = 0) -> Array:
        """The row that a result goes to: of a predicate, or so many after a register."""
        if PREDICATE.fullmatch(name):
            row = (8 if name[0] == "U" else 0) + (7 if name[-1] == "T" else int(name[-1]))
            return self.predicates[row if row not in (7, 15) else 16]
        return self.words[320 if name.endswith("Z") else self.word(name) + after]

    def several(self, name: str, count: int) -> list[Array]:
        """Registers one after the other; RZ stands for as many zeros."""
        row = self.word(name)
        return [self.words[row + (0 if name.endswith("Z") else i)] for i in range(count)]


class Operands:
    """Those of one instruction.

    Attributes:
        name: The first part of the mnemonic, without the U of the uniform datapath.
        parts: Its other parts.
        sources: What is read, as it was written.
        destinations: What is written.
        words: Registers that a result takes, other than a predicate.
    """

    def __init__(self, registers: Registers, name: str, parts: set[str], texts: list[str]) -> None:
        self.registers = registers
        self.name = name
        self.parts = parts
        self.words = 1
        split = _count_destinations(name, texts)
        self.destinations, self.sources = texts[:split], texts[split:]

    def has(self, *parts: str) -> bool:
        """Whether the mnemonic has one of these parts."""
        return not self.parts.isdisjoint(parts)

    def only(self, *parts: str) -> None:
        """Refuses an instruction with any other part."""
        if unknown := self.parts - set(parts):
            raise UnknownInstructionError(f"{self.name} with {', '.join(sorted(unknown))}")

    def integer(self, i: int) -> Get:
        """A source as uint32."""
        sign, bare, row = self._row(i, np.uint32)
        if bare.startswith("|"):
            return lambda: np.abs(row.view(np.int32)).view(np.uint32)
        if sign == "-":
            return lambda: -row
        return (lambda: ~row) if sign == "~" else (lambda: row)

    def signed(self, i: int) -> Get:
        """A source as int32."""
        get = self.integer(i)
        return lambda: get().view(np.int32)

    def addend(self, i: int) -> Get:
        """A source as uint64, so that sums show their carries: -x counts as ~x + 1."""
        sign, bare, row = self._row(i, np.uint32)
        if bare.startswith("|"):
            raise UnknownInstructionError(f"{self.sources[i]} in {self.name}")
        if sign:
            more = np.uint64(sign == "-")
            return lambda: (~row).astype(np.uint64) + more
        return lambda: row.astype(np.uint64)

    def pair(self, i: int, high: int | None = None) -> Get:
        """A source of two registers, or two sources, as uint64."""
        text = self.sources[i]
        if text[0] in "-~|":
            raise UnknownInstructionError(f"{text} in {self.name}")
        if match := _CONSTANT.fullmatch(text):
            row = self.registers.constants[int(match[2] or "0", 16) :][:8].view(np.uint64)
            return lambda: row
        if high is not None:
            low, top = self.integer(i), self.integer(high)
        else:
            first, second = self.registers.several(text.removesuffix(".64"), 2)
            low, top = (lambda: first), (lambda: second)
        return lambda: low().astype(np.uint64) | top().astype(np.uint64) << _32

    def real(self, i: int) -> Get:
        """A source as float32."""
        sign, bare, row = self._row(i, np.float32)
        if self.has("FTZ"):
            plain = row
            get = lambda: _flushed(plain)  # noqa: E731
        else:
            get = lambda: row  # noqa: E731
        if bare.startswith("|"):
            return (lambda: -np.abs(get())) if sign else (lambda: np.abs(get()))
        return (lambda: -get()) if sign else get

    def predicate(self, i: int) -> Get:
        """A source that is a predicate."""
        return self.registers.predicate(self.sources[i])

    def number(self, i: int) -> int:
        """A source that stands in the instruction itself."""
        return int(self.sources[i], 16)

    def written(self) -> list[Array]:
        """The rows that the results go to."""
        rows = []
        for name in self.destinations:
            words = 1 if PREDICATE.fullmatch(name) else self.words
            rows += [self.registers.destination(name, i) for i in range(words)]
        return rows

    def _row(self, i: int, dtype: type) -> tuple[str, str, Array]:
        """The sign before a source, the source without it, and its numbers before both."""
        text = self.sources[i]
        bare = text.lstrip("-~")
        sign, name = text[: len(text) - len(bare)], bare.strip("|")
        if REGISTER.fullmatch(name):
            return sign, bare, self.registers.words[self.registers.word(name)].view(dtype)
        if match := _CONSTANT.fullmatch(name):
            if match[1] and not match[1].endswith("Z"):
                raise UnknownInstructionError(f"{text} in {self.name}")
            at = int(match[2] or "0", 16)
            return sign, bare, self.registers.constants[at : at + 4].view(dtype)
        if re.fullmatch(r"0x[0-9a-f]+", name):
            return sign, bare, np.array([int(name, 16)], np.uint32).view(dtype)
        special = {"+INF": np.inf, "INF": np.inf, "+QNAN": np.nan, "QNAN": np.nan}
        try:
            number = special[name] if name in special else float(name)
        except ValueError:
            raise UnknownInstructionError(f"{text} in {self.name}") from None
        if dtype is not np.float32:
            raise UnknownInstructionError(f"{text} in {self.name}")
        return sign, bare, np.array([number], np.float32)


def _count_destinations(name: str, texts: list[str]) -> int:
    """How many of the operands are written."""
    if name in ("STG", "ST", "STS", "RED", "REDG", "BAR", "R2P") or not texts:
        return 0
    if name == "PLOP3":
        return 2
    if name == "VOTE":
        return 1 + (not PREDICATE.fullmatch(texts[0]) and len(texts) == 3)
    kinds = [bool(PREDICATE.fullmatch(text)) for text in texts]
    if name in ("ATOMG", "ATOM", "ATOMS", "SHFL") or kinds[0]:
        return 2 if len(texts) > 1 and (kinds[0] != kinds[1] or kinds[1]) and name != "FCHK" else 1
    count = 1
    while count < len(kinds) and kinds[count] and not all(kinds[count:]):
        count += 1
    return count


# -- integers ------------------------------------------------------------------------------------


def _low(wide: Array) -> Array:
    return (wide & _LOW).astype(np.uint32)


def _high(wide: Array) -> Array:
    return (wide >> _32).astype(np.uint32)


def _iadd3(o: Operands) -> Compute:
    o.only("X")
    carries = [o.predicate(i) for i in range(3, len(o.sources))]
    if not carries and len(o.destinations) == 1:
        a, b, c = (o.integer(i) for i in range(3))
        return lambda: (a() + b() + c(),)
    x, y, z = (o.addend(i) for i in range(3))

    def compute() -> Sequence[Array]:
        total = x() + y() + z()
        for carry in carries:
            total = total + carry()
        over = total >> _32
        return _low(total), over >= 1, over >= 2

    return compute


def _imad(o: Operands) -> Compute:
    o.only("MOV", "U32", "IADD", "SHL", "X", "HI", "WIDE")
    carry = o.predicate(3) if len(o.sources) > 3 else None
    if not o.has("HI", "WIDE"):
        if len(o.destinations) > 1:
            raise UnknownInstructionError("IMAD with a carry")
        a, b, c = (o.integer(i) for i in range(3))
        if carry is None:
            return lambda: (a() * b() + c(),)
        return lambda: (a() * b() + c() + carry(),)
    kind = np.uint64 if o.has("U32") else np.int64
    if any(text[0] in "-~|" for text in o.sources[:2] if REGISTER.search(text)):
        raise UnknownInstructionError(f"{o.sources} in {o.name}")
    a, b = (o.integer(i) if o.has("U32") else o.signed(i) for i in range(2))
    c = o.pair(2)
    o.words = 2 if o.has("WIDE") else 1

    def compute() -> Sequence[Array]:
        addend = c()
        total = (a().astype(kind) * b().astype(kind)).view(np.uint64) + addend
        over = total < addend
        if carry is not None:
            total = total + carry()
            over = over | ((total == 0) & carry())
        return (_high(total), over) if o.has("HI") else (_low(total), _high(total), over)

    return compute


def _lea(o: Operands) -> Compute:
    o.only("HI", "X", "SX32")
    shift = np.uint64(o.number(2 if o.has("SX32") or not o.has("HI") else 3))
    carry = o.predicate(len(o.sources) - 1) if o.has("X") else None
    addend = o.addend(1)
    if not o.has("HI"):
        shifted = o.integer(0)
        low = np.uint32(shift)

        def compute_low() -> Sequence[Array]:
            total = (shifted() << low).astype(np.uint64) + addend()
            return _low(total), total >> _32 != 0

        return compute_low
    if o.has("SX32"):
        signed = o.signed(0)
        wide: Get = lambda: signed().astype(np.int64).view(np.uint64)  # noqa: E731
    else:
        wide = o.pair(0, 2)

    def compute() -> Sequence[Array]:
        total = (wide() << shift >> _32) + addend()
        if carry is not None:
            total = total + carry()
        return _low(total), total >> _32 != 0

    return compute


def _shf(o: Operands) -> Compute:
    o.only("L", "R", "U32", "S32", "U64", "S64", "HI", "W")
    low, by, high = o.integer(0), o.integer(1), o.integer(2)
    most = 64 if o.has("U64", "S64") else 32
    is_signed = o.has("S32", "S64")

    def compute() -> Sequence[Array]:
        shift = by() & np.uint32(most - 1) if o.has("W") else np.minimum(by(), np.uint32(most))
        bits = shift.astype(np.uint64)
        if o.has("R") and o.has("HI"):
            word = high().view(np.int32).astype(np.int64) if is_signed else high().astype(np.uint64)
            return ((word >> np.minimum(bits, np.uint64(63)).astype(word.dtype)).astype(np.uint32),)
        both = low().astype(np.uint64) | high().astype(np.uint64) << _32
        if o.has("R"):
            if is_signed:
                both = both.view(np.int64)
            shifted = both >> np.minimum(bits, np.uint64(63)).astype(both.dtype)
            shifted = shifted.view(np.uint64)
            return (_low(shifted if is_signed else np.where(bits < 64, shifted, np.uint64(0))),)
        both = np.where(bits < 64, both << np.minimum(bits, np.uint64(63)), np.uint64(0))
        return (_high(both) if o.has("HI") else _low(both),)

    return compute


def _minterms(table: int, terms: Sequence[Array]) -> Array:
    """The function of three bits that `table` is, on all bits of integers or on booleans."""
    a, b, c = terms
    if table == 0xC0:
        return a & b
    if table == 0xFC:
        return a | b
    if table == 0x3C:
        return a ^ b
    result = a ^ a ^ b ^ b ^ c ^ c  # zeros, as long as the longest
    for i in range(8):
        if table >> i & 1:
            result = result | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return result


def _lop3(o: Operands) -> Compute:
    o.only("LUT")
    terms = [o.integer(i) for i in range(3)]
    table, also = o.number(3), o.predicate(4)
    if len(o.destinations) == 2 and not PREDICATE.fullmatch(o.destinations[0]):
        raise UnknownInstructionError("LOP3 with a register before its predicate")

    def compute() -> Sequence[Array]:
        word = _minterms(table, [each() for each in terms])
        if len(o.destinations) == 1:
            return (word,)
        return (word != 0) | also(), word

    return compute


def _plop3(o: Operands) -> Compute:
    o.only("LUT")
    terms = [o.predicate(i) for i in range(3)]
    tables = o.number(3), o.number(4)
    return lambda: [_minterms(table, [each() for each in terms]) for table in tables]


_COMPARE = {
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}
_COMBINE = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


def _part_of(o: Operands, table: dict[str, Any]) -> Any:
    found = [table[part] for part in o.parts if part in table]
    if len(found) != 1:
        raise UnknownInstructionError(f"{o.name} with {', '.join(sorted(o.parts))}")
    return found[0]


def _isetp(o: Operands) -> Compute:
    o.only(*_COMPARE, *_COMBINE, "U32", "EX")
    a, b = (o.integer(i) if o.has("U32") else o.signed(i) for i in range(2))
    compare, combine = _part_of(o, _COMPARE), _part_of(o, _COMBINE)
    also = o.predicate(2)
    lower = o.predicate(3) if o.has("EX") else None

    def compute() -> Sequence[Array]:
        x, y = a(), b()
        found = compare(x, y)
        if lower is not None:  # the words below decide where these are equal
            found = np.where(x == y, lower(), found)
        return combine(found, also()), combine(~found, also())

    return compute


def _prmt(o: Operands) -> Compute:
    o.only()
    a, selector, b = (o.integer(i) for i in range(3))

    def compute() -> Sequence[Array]:
        both = a().astype(np.uint64) | b().astype(np.uint64) << _32
        which, result = selector().astype(np.uint64), np.uint64(0)
        for i in range(4):
            nibble = which >> np.uint64(4 * i)
            byte = both >> ((nibble & np.uint64(7)) << np.uint64(3)) & np.uint64(0xFF)
            sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
            result = result | np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * i)
        return (_low(result),)

    return compute


def _select(o: Operands) -> Compute:
    a, b, which = o.integer(0), o.integer(1), o.predicate(2)
    return lambda: (np.where(which(), a(), b()),)


def _minmax(o: Operands) -> Compute:
    o.only("U32")
    get = o.integer if o.has("U32") else o.signed
    last = len(o.sources) - 2
    b, least = get(last), o.predicate(last + 1)
    if o.name == "VIADDMNMX":
        x, y = o.integer(0), o.integer(1)
        kind = np.uint32 if o.has("U32") else np.int32
        a: Get = lambda: (x() + y()).view(kind)  # noqa: E731
    else:
        a = get(0)
    return lambda: (np.where(least(), np.minimum(a(), b()), np.maximum(a(), b())).view(np.uint32),)


def _sum_of_two(o: Operands) -> Compute:
    o.only()
    a, b = o.integer(0), o.integer(1)
    return lambda: (a() + b(),)


def _absolute(o: Operands) -> Compute:
    o.only()
    a = o.signed(0)
    return lambda: (np.abs(a()).view(np.uint32),)


def _move(o: Operands) -> Compute:
    a = o.integer(0)
    return lambda: (a(),)


def _constant(o: Operands) -> Compute:
    o.only("64", "U8", "U16")
    match = _CONSTANT.fullmatch(o.sources[0])
    if not match:
        raise UnknownInstructionError(f"{o.sources[0]} in {o.name}")
    constants, offset = o.registers.constants, int(match[2] or "0", 16)
    register = o.registers.words[o.registers.word(match[1])] if match[1] else np.zeros(1, np.uint32)
    size = 8 if o.has("64") else 1 if o.has("U8") else 2 if o.has("U16") else 4
    o.words = 2 if size == 8 else 1

    def compute() -> Sequence[Array]:
        # What lanes that do not take part would read may lie anywhere.
        at = np.minimum(register.astype(np.int64) + offset, len(constants) - size)
        numbers = constants[at[:, None] + np.arange(size)]
        wide = np.zeros((len(at), 8), np.uint8)
        wide[:, :size] = numbers
        found = wide.view(np.uint64)[:, 0]
        return _low(found), _high(found)

    return compute


def _special(o: Operands) -> Compute:
    name = o.sources[0]
    if name == "SRZ":
        o.words = 1 if o.has("32") else 2
        zero = np.zeros(1, np.uint32)
        return lambda: (zero, zero)
    if name not in o.registers.special:
        raise UnknownInstructionError(f"{name} in {o.name}")
    found = o.registers.special[name]
    return lambda: (found,)


def _pack_predicates(o: Operands) -> Compute:
    mask = o.integer(2)
    if o.sources[0] != "PR":
        raise UnknownInstructionError(f"{o.sources[0]} in P2R")
    weights = (np.uint32(1) << np.arange(7, dtype=np.uint32))[:, None]
    # Bits outside of the mask come from the other source.
    other = o.integer(1)
    rows = o.registers.predicates[:7]
    return lambda: ((rows * weights).sum(0, np.uint32) & mask() | other() & ~mask(),)


def _count_bits(o: Operands) -> Compute:
    a = o.integer(0)
    return lambda: (np.bitwise_count(a()).astype(np.uint32),)


def _leading_one(o: Operands) -> Compute:
    o.only("U32", "SH")
    a = o.integer(0)

    def compute() -> Sequence[Array]:
        word = a().astype(np.float64)
        at = np.where(word > 0, np.frexp(word)[1] - 1, -1)
        return (np.where((at >= 0) & o.has("SH"), 31 - at, at).astype(np.int64).astype(np.uint32),)

    return compute


def _reverse_bits(o: Operands) -> Compute:
    a = o.integer(0)

    def compute() -> Sequence[Array]:
        word = a()
        for shift, mask in (1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF):
            kept = np.uint32(mask)
            word = (word >> np.uint32(shift) & kept) | (word & kept) << np.uint32(shift)
        return (word >> np.uint32(16) | word << np.uint32(16),)

    return compute


# -- floating point ------------------------------------------------------------------------------


def _flushed(numbers: Array) -> Array:
    """Zero, of the same sign, for what is below the normal numbers."""
    tiny = np.abs(numbers) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), numbers), numbers)


def _rounded(o: Operands, exact: Array) -> Array:
    """A double as a float, as the parts of the mnemonic want it rounded."""
    near = exact.astype(np.float32)
    if o.has("RM", "RZ"):
        down = (near > exact) & (o.has("RM") | (exact > 0))
        near = np.where(down, np.nextafter(near, np.float32(-np.inf)), near)
    if o.has("RP", "RZ"):
        up = (near < exact) & (o.has("RP") | (exact < 0))
        near = np.where(up, np.nextafter(near, np.float32(np.inf)), near)
    if o.has("SAT"):
        near = np.nan_to_num(np.clip(near, np.float32(0), np.float32(1)), nan=0.0)
    return _flushed(near) if o.has("FTZ") else near


def _arithmetic(o: Operands) -> Compute:
    o.only("FTZ", "RM", "RP", "RZ", "RN", "SAT")
    reals = [o.real(i) for i in range(len(o.sources))]
    wide = [lambda get=get: get().astype(np.float64) for get in reals]
    if o.name == "FFMA":  # double holds the product exactly
        exact: Get = lambda: wide[0]() * wide[1]() + wide[2]()  # noqa: E731
    elif o.name == "FMUL":
        exact = lambda: wide[0]() * wide[1]()  # noqa: E731
    else:
        exact = lambda: wide[0]() + wide[1]()  # noqa: E731
    if o.parts <= {"RN"}:
        return lambda: (exact().astype(np.float32).view(np.uint32),)
    return lambda: (_rounded(o, exact()).view(np.uint32),)


def _fsetp(o: Operands) -> Compute:
    unordered = {f"{name}U": f for name, f in _COMPARE.items()}
    o.only(*_COMPARE, *unordered, *_COMBINE, "FTZ", "NAN", "NUM")
    a, b, also = o.real(0), o.real(1), o.predicate(2)
    combine = _part_of(o, _COMBINE)

    def compute() -> Sequence[Array]:
        x, y = a(), b()
        nan = np.isnan(x) | np.isnan(y)
        if o.has("NAN", "NUM"):
            found = nan if o.has("NAN") else ~nan
        elif o.has(*unordered):
            found = _part_of(o, unordered)(x, y) | nan
        else:
            found = _part_of(o, _COMPARE)(x, y) & ~nan
        return combine(found, also()), combine(~found, also())

    return compute


def _real_select(o: Operands) -> Compute:
    a, b, which = o.real(0), o.real(1), o.predicate(2)
    return lambda: (np.where(which(), a(), b()).view(np.uint32),)


def _real_minmax(o: Operands) -> Compute:
    o.only("FTZ")
    a, b, least = o.real(0), o.real(1), o.predicate(2)
    return lambda: (np.where(least(), np.fmin(a(), b()), np.fmax(a(), b())).view(np.uint32),)


def _needs_slow_division(o: Operands) -> Compute:
    """FCHK: whether the exponents are such that dividing by a reciprocal would not be exact."""
    o.only()
    a, b = o.integer(0), o.integer(1)

    def compute() -> Sequence[Array]:
        above, below = ((x() >> np.uint32(23) & np.uint32(0xFF)).astype(np.int32) for x in (a, b))
        odd = (below == 0) | (below >= 253) | (above == 255)
        odd = odd | (above - below > 125) | ((above - below < -124) & (above != 0))
        return (odd | ((above < 25) & (above != 0)),)

    return compute


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "RCP": lambda x: 1 / x,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
}


def _function(o: Operands) -> Compute:
    o.only(*_FUNCTIONS)
    function, x = _part_of(o, _FUNCTIONS), o.real(0)
    return lambda: (function(x().astype(np.float64)).astype(np.float32).view(np.uint32),)


def _to_float(o: Operands) -> Compute:
    o.only("F32", "S32", "U16", "U32", "U64", "S64", "RP", "RM", "RZ", "RN")
    if o.has("U16"):
        whole = o.integer(0)
        number: Get = lambda: whole() & np.uint32(0xFFFF)  # noqa: E731
    elif o.has("U64", "S64"):
        wide = o.pair(0)
        number = wide if o.has("U64") else (lambda: wide().view(np.int64))
    else:
        number = o.integer(0) if o.has("U32") else o.signed(0)

    def compute() -> Sequence[Array]:
        x = number()
        exact = x.astype(np.longdouble)  # doubles would round numbers of 64 bits first
        near = exact.astype(np.float32)
        if o.has("RP", "RM", "RZ"):
            return (_rounded(o, exact).view(np.uint32),)
        return (near.view(np.uint32),)

    return compute


_ROUNDINGS = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}


def _to_integer(o: Operands) -> Compute:
    o.only("FTZ", "S32", "U32", "U64", "S64", "NTZ", *_ROUNDINGS)
    x = o.real(0)
    rounding = _part_of(o, _ROUNDINGS) if o.has(*_ROUNDINGS) else np.rint
    bits = 64 if o.has("U64", "S64") else 32
    o.words = bits // 32
    low, high = (0, 2**bits) if o.has("U32", "U64") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    kind = np.uint64 if low == 0 else np.int64

    def compute() -> Sequence[Array]:
        whole = rounding(x().astype(np.longdouble))
        # NTZ: not a number becomes zero.
        whole = np.where(np.isnan(whole), 0 if o.has("NTZ") else low or high // 2, whole)
        found = np.clip(whole, low, np.longdouble(high) - 1).astype(kind).view(np.uint64)
        return _low(found), _high(found)

    return compute


def _round_real(o: Operands) -> Compute:
    o.only("FTZ", *_ROUNDINGS)
    x, rounding = o.real(0), _part_of(o, _ROUNDINGS) if o.has(*_ROUNDINGS) else np.rint
    return lambda: (rounding(x()).view(np.uint32),)


def _half_constant(o: Operands) -> Compute:
    """HFMA2 as it makes constants: nothing times nothing plus two halves."""
    if [text.lstrip("-") for text in o.sources[:2]] != ["RZ", "RZ"]:
        raise UnknownInstructionError(f"{o.sources} in {o.name}")
    halves = np.array([float(o.sources[3]), float(o.sources[2])], np.float16)
    word = halves.view(np.uint32)
    return lambda: (word,)


def _widened_half(o: Operands) -> Compute:
    """HADD2.F32 as it converts: nothing plus a half."""
    name, _, half = o.sources[1].partition(".")
    if not o.has("F32") or o.sources[0] != "-RZ" or half not in ("H0_H0", "H1_H1"):
        raise UnknownInstructionError(f"{o.sources} in {o.name}")
    halves = o.registers.words[o.registers.word(name)].view(np.float16)
    which = int(half[1])
    return lambda: (halves[which::2].astype(np.float32).view(np.uint32),)


def _narrowed_pair(o: Operands) -> Compute:
    o.only("F16", "BF16", "F32", "PACK_AB")
    high, low = o.real(0), o.real(1)

    def narrowed(numbers: Array) -> Array:
        if o.has("F16"):
            return numbers.astype(np.float16).view(np.uint16).astype(np.uint32)
        bits = numbers.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        return np.where(np.isnan(numbers), np.uint32(0x7FFF), rounded >> np.uint32(16))

    return lambda: (narrowed(high()) << np.uint32(16) | narrowed(low()),)


OPERATIONS: dict[str, Callable[[Operands], Compute]] = {
    "IADD3": _iadd3,
    "IMAD": _imad,
    "LEA": _lea,
    "SHF": _shf,
    "LOP3": _lop3,
    "PLOP3": _plop3,
    "ISETP": _isetp,
    "PRMT": _prmt,
    "SEL": _select,
    "VIMNMX": _minmax,
    "IMNMX": _minmax,
    "VIADDMNMX": _minmax,
    "VIADD": _sum_of_two,
    "IABS": _absolute,
    "MOV": _move,
    "LDC": _constant,
    "S2R": _special,
    "CS2R": _special,
    "P2R": _pack_predicates,
    "POPC": _count_bits,
    "FLO": _leading_one,
    "BREV": _reverse_bits,
    "FFMA": _arithmetic,
    "FADD": _arithmetic,
    "FMUL": _arithmetic,
    "FSETP": _fsetp,
    "FSEL": _real_select,
    "FMNMX": _real_minmax,
    "FCHK": _needs_slow_division,
    "MUFU": _function,
    "I2F": _to_float,
    "I2FP": _to_float,
    "F2I": _to_integer,
    "FRND": _round_real,
    "HFMA2": _half_constant,
    "HADD2": _widened_half,
    "F2FP": _narrowed_pair,
}
