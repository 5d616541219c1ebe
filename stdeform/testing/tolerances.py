"""The one table of tolerances, and the comparison with an oracle."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the float64 oracle of the same, already rounded inputs.

    An element may differ by `relative` times its own magnitude plus `absolute` times the root
    mean square of the whole expected tensor.

    Attributes:
        relative: For the one rounding of the result into its dtype, half a unit in the last
            place.
        absolute: For the arithmetic before it, where terms cancel.
        reason: Where the numbers come from.
        rejects: The mutants that must be further away than this, by their names in the tests.
    """

    relative: float
    absolute: float
    reason: str
    rejects: tuple[str, ...]


_WRONG_MEANING = (
    "half_cell_shift",
    "swapped_axes",
    "constant_output",
    "align_corners",
    "border_padding",
    "swapped_points",
)
_LOW_PRECISION = (*_WRONG_MEANING, "low_precision_coordinates", "low_precision_sums")
_FLOAT32 = (
    "float32 coordinates of a level of up to 64 cells per axis are off by up to 4e-6 cells; the "
    "worst element seen was at half of this"
)
_ROUNDED = "float32 arithmetic as for float32, then one rounding: nothing but the result is {}"

# By the dtype of the tensor compared. A float32 gradient of a bfloat16 problem has the tolerance of
# float32, as all arithmetic is in float32. Gradients of locations need points off the kinks
# (`kink_margin`).
TOLERANCES: dict[tuple[torch.dtype, Literal["forward", "gradient"]], Tolerance] = {
    (torch.float64, "forward"): Tolerance(
        2**-53, 2e-13, "float64 rounding, ten times the worst element seen", _WRONG_MEANING
    ),
    (torch.float64, "gradient"): Tolerance(
        2**-53, 3e-12, "float64 rounding, ten times the worst element seen", _WRONG_MEANING
    ),
    (torch.float32, "forward"): Tolerance(2**-24, 4e-5, _FLOAT32, _LOW_PRECISION),
    (torch.float32, "gradient"): Tolerance(2**-24, 3e-4, _FLOAT32, _LOW_PRECISION),
    (torch.float16, "forward"): Tolerance(2**-11, 4e-5, _ROUNDED.format("half"), _LOW_PRECISION),
    (torch.float16, "gradient"): Tolerance(2**-11, 3e-4, _ROUNDED.format("half"), _LOW_PRECISION),
    (torch.bfloat16, "forward"): Tolerance(
        2**-8, 4e-5, _ROUNDED.format("bfloat16"), _LOW_PRECISION
    ),
    (torch.bfloat16, "gradient"): Tolerance(
        2**-8, 3e-4, _ROUNDED.format("bfloat16"), _LOW_PRECISION
    ),
}


def excess(actual: Tensor, expected: Tensor, kind: Literal["forward", "gradient"]) -> float:
    """The worst element's error over what `TOLERANCES` allows it; at most 1 if all are close.

    Args:
        actual: The result, in the dtype that sets the tolerance.
        expected: The float64 oracle's result for the same rounded inputs.
        kind: Which column of the table.

    Returns:
        0 for empty tensors; infinity where `actual` holds a NaN or infinity, or anything but
        zero although all of `expected` is zero.

    Raises:
        ValueError: The shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {list(actual.shape)} and {list(expected.shape)}")
    if actual.numel() == 0:
        return 0.0
    tolerance = TOLERANCES[actual.dtype, kind]
    # CUDA has float64, and is fast; some other devices have not.
    place = actual.device if actual.is_cuda else torch.device("cpu")
    expected = expected.detach().to(place).to(torch.float64)
    error = (actual.detach().to(place).to(torch.float64) - expected).abs()
    scale = expected.square().mean().sqrt()
    allowed = tolerance.relative * expected.abs() + tolerance.absolute * scale
    ratio = torch.where(error == 0, 0.0, error / allowed)
    return float(ratio.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def assert_close(
    actual: Tensor, expected: Tensor, kind: Literal["forward", "gradient"], name: str = "result"
) -> None:
    """Asserts that `excess` is at most 1.

    Raises:
        AssertionError: An element is further away; says by how much.
        ValueError: The shapes differ.
    """
    worst = excess(actual, expected, kind)
    if not worst <= 1:
        raise AssertionError(
            f"{name} of shape {list(actual.shape)}, {actual.dtype}, is {worst:.3g} times as far "
            f"from the oracle as its {kind} tolerance allows"
        )
