"""Whether an implementation computes what it should: checked before anything is timed.

Our operator and the `grid_sample` baseline are compared with the latter in float64 on some queries,
and in float32 on all of them, which also covers the gradient of the whole value. Dense attention is
compared with its formula in float64 on some queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.subjects.base import Case, WrongAnswerError, differentiable, poison
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.workloads import DTYPES, Workload
from stdeform.testing import composite_from_offsets, excess

_SOME = 64  # queries; their float64 answer costs almost nothing
_NAMES = ("result", "value", "reference_points", "sampling_offsets", "attention_logits")
_TOLERATED_CELLS = 64  # per axis: float32 coordinates of a longer one round more coarsely
# Dense attention rounds the probabilities to its dtype half way; in multiples of the result's
# root mean square. A wrong scale, order or softmax is off by about 1.
_DENSE_TOLERANCE = 4e-5
_DENSE_ROUNDINGS = 4


def check_correctness(
    workload: Workload, cases: Mapping[str, Case], *, gradients: bool = True
) -> None:
    """Runs every case forward and backward once and compares.

    Args:
        workload: What the cases were prepared for.
        cases: By their names in `IMPLEMENTATIONS`, all prepared from the same seed.
        gradients: False: the results alone, nothing is run backward but the oracle.

    Raises:
        WrongAnswerError: Names the implementation and the tensor, and says how far off it is.
    """
    for error in find_errors(workload, cases, gradients=gradients).values():
        raise error


def find_errors(
    workload: Workload, cases: Mapping[str, Case], *, gradients: bool = True
) -> dict[str, Exception]:
    """The same, for each case on its own.

    Returns:
        The error of each implementation that answers wrongly or not at all.
    """
    slack = max(1.0, max(map(max, workload.spatial_shapes)) / _TOLERATED_CELLS)
    real = torch.promote_types(DTYPES[workload.dtype], torch.float32)
    oracle: tuple[Tensor, ...] | None = None
    errors: dict[str, Exception] = {}
    for name, case in cases.items():
        try:
            if not IMPLEMENTATIONS[name].is_operator:
                _check_dense(name, case)
                continue
            oracle = oracle or _oracle(workload, case.inputs, case.grad_out, real)
            poison([case.grad_out])
            answers = _answers(name, case) if gradients else {"result": case.forward()}
            # This oracle rounds as we do, so that the two may be twice the tolerance apart.
            for what, actual in answers.items():
                _demand(name, what, actual, oracle[_NAMES.index(what)], 2 * slack)
            poison([case.grad_out])
            _demand(name, _NAMES[0], case.forward(), oracle[0], 2 * slack)
            _check_some_queries(workload, name, case, answers, slack)
        except Exception as error:
            errors[name] = error
    return errors


def _answers(name: str, case: Case) -> dict[str, Tensor]:
    """The result and all gradients, each in the dtype that sets its tolerance.

    Where they pass through a narrower dtype, those of reference points are left out: PyTorch adds
    them up from rounded ones of offsets, which are checked.
    """
    poison((case.grad_out, *case.inputs))
    answers = dict(zip(_NAMES, case.forward_backward(), strict=True))
    if narrow := IMPLEMENTATIONS[name].gradients_in:
        del answers["reference_points"]
        for what in ("sampling_offsets", "attention_logits"):
            answers[what] = answers[what].to(narrow)
    return answers


def _check_some_queries(
    workload: Workload, name: str, case: Case, answers: Mapping[str, Tensor], slack: float
) -> None:
    some = _some(workload.num_queries)
    value, *per_query = case.inputs
    inputs = (value, *(tensor[:, some] for tensor in per_query))
    oracle = _oracle(workload, inputs, case.grad_out[:, some], torch.float64)
    for what, actual in answers.items():
        if what != "value":  # its gradient is a sum over all queries
            _demand(name, what, actual[:, some], oracle[_NAMES.index(what)], slack)


def _check_dense(name: str, case: Case) -> None:
    result = case.forward()
    some = _some(result.shape[2])
    query, key, value = (tensor.detach().double() for tensor in case.inputs)
    logits = query[:, :, some] @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    expected = logits.softmax(-1) @ value
    tolerance = _DENSE_TOLERANCE + _DENSE_ROUNDINGS * torch.finfo(result.dtype).eps
    error = (result[:, :, some] - expected).abs().max() / expected.square().mean().sqrt()
    if not error <= tolerance:
        raise WrongAnswerError(f"{name}: its result is off by {float(error):.3g}, relative")


def _oracle(
    workload: Workload, inputs: tuple[Tensor, ...], grad_out: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    def attend(value: Tensor, *others: Tensor) -> Tensor:
        return composite_from_offsets(value, workload.spatial_shapes, *others)

    leaves = differentiable(tensor.detach().to(dtype) for tensor in inputs)
    return Case(attend, leaves, grad_out.to(dtype)).forward_backward()


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
