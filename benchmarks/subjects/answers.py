"""Whether a variant computes what it should: asked before anything is timed.

Our operator is held against the `grid_sample` composite in float64 on some queries, and in float32
on all of them, which also covers the gradient of the whole value; so is the composite that is
timed. Dense attention is held against its formula in float64 on some queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.subjects.prepared import Prepared, poison
from benchmarks.subjects.variants import VARIANTS
from benchmarks.workloads import DTYPES, Workload
from stdeform.testing import composite_from_offsets, excess

_SOME = 64  # queries whose float64 answer costs next to nothing
_NAMES = ("result", "value", "reference_points", "sampling_offsets", "attention_logits")
_TOLERATED_CELLS = 64  # per axis: float32 coordinates of a longer one round more coarsely
# Dense attention rounds the probabilities to its dtype half way; in multiples of the result's
# root mean square. A wrong scale, order or softmax is off by about 1.
_DENSE_TOLERANCE = 4e-5
_DENSE_ROUNDINGS = 4


class WrongAnswerError(RuntimeError):
    """A variant's result or gradient is further from the oracle than rounding explains."""


def check_answers(
    workload: Workload, variants: Mapping[str, Prepared], *, gradients: bool = True
) -> None:
    """Runs every variant forward and backward once and compares.

    Args:
        workload: What the variants were prepared for.
        variants: By their names in `VARIANTS`, all prepared from the same seed.
        gradients: False: the results alone, nothing is run backward but the oracle.

    Raises:
        WrongAnswerError: Names the variant and the tensor, and says how far off it is.
    """
    for error in find_errors(workload, variants, gradients=gradients).values():
        raise error


def find_errors(
    workload: Workload, variants: Mapping[str, Prepared], *, gradients: bool = True
) -> dict[str, Exception]:
    """The same, and what goes wrong with one variant says nothing about the others.

    Returns:
        The error of each variant that answers wrongly or not at all.
    """
    slack = max(1.0, max(map(max, workload.spatial_shapes)) / _TOLERATED_CELLS)
    real = torch.promote_types(DTYPES[workload.dtype], torch.float32)
    oracle: tuple[Tensor, ...] | None = None
    errors: dict[str, Exception] = {}
    for name, prepared in variants.items():
        try:
            if not VARIANTS[name].is_operator:
                _check_dense(name, prepared)
                continue
            oracle = oracle or _composite(workload, prepared.inputs, prepared.grad_out, real)
            poison([prepared.grad_out])
            answers = _answers(name, prepared) if gradients else {"result": prepared.forward()}
            # This oracle rounds as we do, so that the two may be twice the tolerance apart.
            for what, actual in answers.items():
                _demand(name, what, actual, oracle[_NAMES.index(what)], 2 * slack)
            poison([prepared.grad_out])
            _demand(name, _NAMES[0], prepared.forward(), oracle[0], 2 * slack)
            _check_some_queries(workload, name, prepared, answers, slack)
        except Exception as error:
            errors[name] = error
    return errors


def _answers(name: str, prepared: Prepared) -> dict[str, Tensor]:
    """The result and all gradients, each in the dtype whose tolerance counts.

    Where they pass through a narrower dtype, those of reference points are left out: PyTorch adds
    them up from rounded ones of offsets, which are judged.
    """
    poison((prepared.grad_out, *prepared.inputs))
    answers = dict(zip(_NAMES, prepared.forward_backward(), strict=True))
    if narrow := VARIANTS[name].gradients_in:
        del answers["reference_points"]
        for what in ("sampling_offsets", "attention_logits"):
            answers[what] = answers[what].to(narrow)
    return answers


def _check_some_queries(
    workload: Workload,
    name: str,
    prepared: Prepared,
    answers: Mapping[str, Tensor],
    slack: float,
) -> None:
    some = _some(workload.num_queries)
    value, *per_query = prepared.inputs
    inputs = (value, *(tensor[:, some] for tensor in per_query))
    oracle = _composite(workload, inputs, prepared.grad_out[:, some], torch.float64)
    for what, actual in answers.items():
        if what != "value":  # its gradient is a sum over all queries
            _demand(name, what, actual[:, some], oracle[_NAMES.index(what)], slack)


def _check_dense(name: str, prepared: Prepared) -> None:
    result = prepared.forward()
    some = _some(result.shape[2])
    query, key, value = (tensor.detach().double() for tensor in prepared.inputs)
    logits = query[:, :, some] @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    expected = logits.softmax(-1) @ value
    tolerance = _DENSE_TOLERANCE + _DENSE_ROUNDINGS * torch.finfo(result.dtype).eps
    error = (result[:, :, some] - expected).abs().max() / expected.square().mean().sqrt()
    if not error <= tolerance:
        raise WrongAnswerError(f"{name}: its result is off by {float(error):.3g}, relative")


def _composite(
    workload: Workload, inputs: tuple[Tensor, ...], grad_out: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return composite_from_offsets(value, workload.spatial_shapes, *others)

    leaves = tuple(tensor.detach().to(dtype).requires_grad_() for tensor in inputs)
    return Prepared(attend, leaves, grad_out.to(dtype)).forward_backward()


def _demand(name: str, what: str, actual: Tensor, expected: Tensor, slack: float) -> None:
    is_gradient = what != _NAMES[0]
    worst = excess(actual, expected, "gradient" if is_gradient else "forward")
    if not worst <= slack:
        raise WrongAnswerError(
            f"{name}: its {f'gradient of {what}' if is_gradient else what} is {worst:.3g} times "
            f"as far from the oracle as the tolerance allows (here {slack:.3g} times)"
        )


def _some(num_queries: int) -> Tensor:
    return torch.linspace(0, num_queries - 1, min(_SOME, num_queries)).long()
