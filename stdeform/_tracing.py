"""The operator in `torch.jit.trace`, where sizes that are read from a tensor are 0-d tensors.

A trace keeps operators and what happens to tensors, not Python ints. So a second operator takes the
level table as a tensor and reads it in each run of the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops, export, reference

torch.library.define(
    "stdeform::st_deform_attn_traced",
    "(Tensor value, Tensor spatial_shapes, Tensor? reference_points, Tensor positions, "
    "Tensor scores, int[] num_points, bool native) -> Tensor",
)
_traced: Callable[..., Tensor] = torch.ops.stdeform.st_deform_attn_traced.default


@torch.library.impl("stdeform::st_deform_attn_traced", "CompositeImplicitAutograd")
def _(value: Tensor, spatial_shapes: Tensor, *others: Any) -> Tensor:
    *samples, native = others
    attend = _ops.st_deform_attn if native else reference.attend
    return attend(value, spatial_shapes.tolist(), *samples)


def attend(native: bool, value: Tensor, spatial_shapes: Sequence[Any], *samples: Any) -> Tensor:
    """The operator, or the reference, for a call that may be recorded by `torch.jit.trace`.

    Arguments are those of the registered operator; see `stdeform._ops`.
    """
    if export.is_due():
        return export.attend(value, spatial_shapes, *samples)
    if any(isinstance(size, Tensor) for size in spatial_shapes):
        table = torch.stack([torch.as_tensor(size) for size in spatial_shapes])
        return _traced(value, table, *samples, native)
    attend = _ops.st_deform_attn if native else reference.attend
    return attend(value, spatial_shapes, *samples)
