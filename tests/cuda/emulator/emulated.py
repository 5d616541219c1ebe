"""The CUDA operator on NumPy arrays: the kernels' own sources, compiled for the processor.

Arrays of uint16 are bfloat16, bit by bit. Inputs keep their strides. All arrays are guarded copies,
and outputs begin as NaN.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.cuda.emulator import build
from tests.cuda.emulator.emulator import FIFO, Emulator, KernelError, Schedule, Side, distinct

Array = NDArray[Any]

# The codes of csrc/core/dtype.h.
_DTYPES = {"float64": 0, "float32": 1, "float16": 2, "uint16": 3}
_GRADIENTS = ("value", "reference", "positions", "scores")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The operator's arguments, in the form without a reference or in the one with it.

    Attributes:
        spatial_shapes: L rows of N sizes, outermost axis first.
        num_points: Of each level; their sum is P.
        value: [B, S, M, D], its last axis contiguous.
        positions: [B, Q, M, P, N], locations or, with a reference, offsets.
        scores: [B, Q, M, P], weights or, with a reference, logits.
        reference: [B, Q, L, N], or [B, Q, L, 2N] for boxes.
    """

    spatial_shapes: tuple[tuple[int, ...], ...]
    num_points: tuple[int, ...]
    value: Array
    positions: Array
    scores: Array
    reference: Array | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """What runs the kernels, and how.

    Attributes:
        variant: How they are built.
        schedule: Who runs when.
        side: Where memory ends that kernels may touch: at an array's end, or at its start.
        device: The device that the arrays claim to be on; there are two.
        multiprocessors: Of each device; few, so that small problems fill them.
        tuning: Fields of `Tuning` in csrc/cuda/params.h that are forced.
        deterministic: Whether the backward must give the same bits in every run.
    """

    variant: build.Variant = build.PLAIN
    schedule: Schedule = FIFO
    side: Side = "end"
    device: int = 0
    multiprocessors: int = 4
    tuning: Mapping[str, int] = dataclasses.field(default_factory=dict)
    deterministic: bool = False

    @property
    def emulator(self) -> Emulator:
        """The library of kernels that it runs."""
        return _load(self.variant)


PLAIN = Machine()


def sources() -> list[Path]:
    """The operator's CUDA sources; what probes for devices is not emulated."""
    kernels = sorted((build.ROOT / "csrc" / "cuda").rglob("*.cu"))
    return [path for path in kernels if path.stem != "device"]


def forward(inputs: Inputs, machine: Machine = PLAIN) -> Array:
    """Runs the forward kernels.

    Args:
        inputs: One call's arguments.
        machine: What runs it.

    Returns:
        The result, [B, Q, M, D], in value's dtype.

    Raises:
        KernelError: A kernel broke a rule, or wrote to an input.
        RuntimeError: The operator refused the call; the text is its message.
    """
    batch, _, num_heads, head_dim = inputs.value.shape
    shape = (batch, inputs.positions.shape[1], num_heads, head_dim)
    return _run(inputs, machine, {}, {"out": (shape, inputs.value.dtype)})["out"]


def backward(
    inputs: Inputs,
    grad_out: Array,
    machine: Machine = PLAIN,
    needs: Collection[str] = _GRADIENTS,
) -> dict[str, Array]:
    """Runs the backward kernels.

    Args:
        inputs: One call's arguments.
        grad_out: The result's gradient, [B, Q, M, D] in value's dtype, its last axis contiguous.
        machine: What runs it.
        needs: The requested gradients, of "value", "reference", "positions", "scores".

    Returns:
        The requested gradients that exist. They have the type that the kernels compute in, for the
        caller to round, except for that of the positions, which has their dtype.

    Raises:
        KernelError: A kernel broke a rule, or wrote to an input.
        RuntimeError: The operator refused the call; the text is its message.
    """
    compute = np.dtype(np.float64 if inputs.value.dtype == np.float64 else np.float32)
    made = {
        "value": (inputs.value.shape, compute),
        "positions": (inputs.positions.shape, inputs.positions.dtype),
        "scores": (inputs.scores.shape, compute),
    }
    if inputs.reference is not None:
        batch, num_queries, num_levels, width = inputs.reference.shape
        shape = (batch, num_queries, inputs.value.shape[2], num_levels, width)
        made["reference"] = (shape, compute)
    wanted = {f"grad_{name}": made[name] for name in _GRADIENTS if name in needs and name in made}
    grads = _run(inputs, machine, {"grad_out": grad_out}, wanted)
    grads = {name.removeprefix("grad_"): grad for name, grad in grads.items()}
    if "reference" in grads:  # a share per head, which the caller adds up
        grads["reference"] = grads["reference"].sum(2)
    return grads


class _Array(ctypes.Structure):
    """`stdeform::Array` of csrc/core/problem.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("stride", ctypes.c_int64 * 5),
    )


# In the order of `Arrays` of entry.cpp.
_FIELDS = (
    *("value", "reference", "positions", "scores", "out", "grad_out"),
    *("grad_value", "grad_reference", "grad_positions", "grad_scores"),
)


_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int64)


@functools.cache
def _load(variant: build.Variant) -> Emulator:
    emulator = Emulator(build.library([*sources(), build.HERE / "entry.cpp"], variant))
    emulator.functions.run_operator.restype = ctypes.c_char_p
    return emulator


def _run(
    inputs: Inputs,
    machine: Machine,
    given: dict[str, Array],
    made: Mapping[str, tuple[Sequence[int], np.dtype[Any]]],
) -> dict[str, Array]:
    """Calls the operator with the inputs and arrays that are `given`; returns those it `made`."""
    emulator = machine.emulator
    emulator.set_schedule(machine.schedule)
    emulator.set_multiprocessors(machine.multiprocessors)
    with emulator.arrays(machine.side) as arrays:
        for name in ("value", "reference", "positions", "scores"):
            if (array := getattr(inputs, name)) is not None:
                given = given | {name: array}
        guarded = {name: arrays.copy(array, name) for name, array in given.items()}
        out = {name: arrays.empty(*like, name) for name, like in made.items()}
        records = (_Array * len(_FIELDS))()
        for i, name in enumerate(_FIELDS):
            array = (guarded | out).get(name)
            if array is not None:
                records[i] = _record(array)

        def allocate(num_bytes: int) -> int:
            return arrays.empty((num_bytes,), np.uint8, "the workspace").ctypes.data

        message = emulator.functions.run_operator(
            ctypes.c_bool(not made.keys() <= {"out"}),
            ctypes.c_bool(machine.deterministic),
            _integers(_sizes(inputs)),
            _integers([size for row in inputs.spatial_shapes for size in row]),
            _integers(inputs.num_points),
            ctypes.c_bool(
                inputs.reference is not None
                and inputs.reference.shape[3] == 2 * inputs.positions.shape[4]
            ),
            ctypes.byref(records),
            ctypes.c_int(machine.device),
            ctypes.c_int(len(machine.tuning)),
            (ctypes.c_char_p * len(machine.tuning))(*map(str.encode, machine.tuning)),
            _integers(list(machine.tuning.values())),
            _Allocate(allocate),
        )
        emulator.check()
        assert emulator.functions.emulated_current_device() == 0, "it is no more the caller's"
        if message:
            raise RuntimeError(emulator.explain(message.decode()))
        for name, array in given.items():
            if distinct(guarded[name]).tobytes() != distinct(array).tobytes():
                raise KernelError(f"a kernel wrote to its input {name}")
        return {name: array.copy() for name, array in out.items()}


def _sizes(inputs: Inputs) -> list[int]:
    """The letters N, B, S, M, D, Q, L, P."""
    batch, num_cells, num_heads, head_dim = inputs.value.shape
    _, num_queries, _, num_samples, num_axes = inputs.positions.shape
    assert num_cells == sum(map(math.prod, inputs.spatial_shapes))
    assert num_samples == sum(inputs.num_points)
    return [
        *(num_axes, batch, num_cells, num_heads, head_dim),
        *(num_queries, len(inputs.spatial_shapes), num_samples),
    ]


def _integers(numbers: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _record(array: Array) -> _Array:
    strides = [stride // array.itemsize for stride in array.strides]
    return _Array(
        array.ctypes.data,
        _DTYPES[array.dtype.name],
        (ctypes.c_int64 * 5)(*strides),
    )
