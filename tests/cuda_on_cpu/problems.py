"""Problems of `stdeform.testing`, run by the emulated CUDA kernels; the way from torch to NumPy."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stdeform.testing import Problem
from tests.cases import arguments, names, tensors
from tests.cuda_on_cpu import emulated
from tests.cuda_on_cpu.emulated import PLAIN, Inputs, Machine

# What the operator calls its inputs, in the order of the public functions.
_INPUTS = {
    "value": "value",
    "sampling_locations": "positions",
    "attention_weights": "scores",
    "reference_points": "reference",
    "sampling_offsets": "positions",
    "attention_logits": "scores",
}


def forward(problem: Problem, form: str, machine: Machine = PLAIN) -> Tensor:
    """The result, [B, Q, M * D], as `tests.cases.forward` gives it."""
    out = emulated.forward(inputs(problem, form), machine)
    return to_tensor(out, problem.value.dtype).flatten(2)


def gradients(
    problem: Problem, form: str, machine: Machine = PLAIN, needs: Collection[str] | None = None
) -> tuple[Tensor | None, ...]:
    """The gradients of all tensors of the form, or of those that `needs` names.

    They are rounded as `stdeform` rounds them, once, to the dtype of their tensor.
    """
    given = tensors(arguments(problem, form))
    wanted = names(form) if needs is None else needs
    head_dim = problem.value.shape[3]
    grad_out = _with_unit_stride(to_array(problem.grad_out.unflatten(2, (-1, head_dim))))
    grads = emulated.backward(
        inputs(problem, form), grad_out, machine, [_INPUTS[name] for name in wanted]
    )
    made: list[Tensor | None] = []
    for name, tensor in zip(names(form), given, strict=True):
        grad = grads.get(_INPUTS[name])
        if grad is None:
            made.append(None)
        elif grad.dtype.name == "uint16":
            made.append(to_tensor(grad, torch.bfloat16))
        else:
            made.append(torch.from_numpy(grad).to(tensor.dtype))
    return tuple(made)


def inputs(problem: Problem, form: str) -> Inputs:
    """The arguments of this form as the kernels take them."""
    given = dict(zip(names(form), tensors(arguments(problem, form)), strict=True))
    arrays = {_INPUTS[name]: to_array(tensor) for name, tensor in given.items()}
    arrays["value"] = _with_unit_stride(arrays["value"])
    return Inputs(problem.spatial_shapes, **arrays)


def to_array(tensor: Tensor) -> NDArray[Any]:
    """The same memory; bfloat16 as uint16."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def to_tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """The same memory, of which uint16 is bfloat16."""
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _with_unit_stride(array: NDArray[Any]) -> NDArray[Any]:
    """The kernels read a row of channels as one run of memory, which `stdeform` sees to."""
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)
