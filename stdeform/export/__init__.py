"""How the operator leaves PyTorch: as standard operations, in one of two forms.

`torch.onnx.export` finds the operator's decomposition here and takes the form that is fastest in
ONNX Runtime; `export_form` chooses another one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from . import _custom_node, _gather, _grid_sample
from ._samples import Samples

__all__ = ["FORMS", "export_form"]

FORMS = {"grid_sample": _grid_sample.attend, "gather": _gather.attend}
_BY_AXES = {2: "grid_sample", 3: "gather"}  # of ONNX Runtime, docs/guide/export.md
_NODE = re.compile(r"[\w.]+::\w+")
_requested: ContextVar[str | None] = ContextVar("export_form", default=None)


@contextlib.contextmanager
def export_form(form: str) -> Iterator[None]:
    """Chooses the standard operations of which an exported operator consists.

    Calls of the layers and functions that are recorded inside, by `torch.onnx.export`,
    `torch.export`, `torch.jit.trace` or a library on top of one of them, are written as

    - "grid_sample": a GridSample per level. Its 5-D form, for N = 3, needs opset 20.
    - "gather": gathers of pairs of cells; no GridSample, and no tensor of more than five axes but
      those that the caller gives.
    - "domain::Name": one node of this name in an ONNX graph, for a runtime with a plugin; only in
      `torch.onnx.export(..., dynamo=True)`, and from PyTorch 2.8 on. A sequence is an image of one
      row there. Its
      inputs are the value [B, S, M, D], `spatial_shapes` [L, N] and the first cell of each level
      [L], both int32, locations [B, Q, M, L, K, N] and weights [B, Q, M, L, K]; its result is
      [B, Q, M, D]. Points that differ by level make the last two [B, Q, M, P, N] and [B, Q, M, P],
      and are in the attribute `num_points`. Floating inputs are float32, or float64.

    Outside, `torch.onnx.export` takes what is faster in ONNX Runtime, GridSample for N = 1 and 2
    and gathers for N = 3, and other exporters keep the operator whole. Sizes may be dynamic: batch,
    queries, and the sizes of levels. Calls that are not recorded, and those of torch.compile,
    compute as ever; so do those of other threads.

    Args:
        form: "grid_sample", "gather" or the name of a custom node.

    Raises:
        ValueError: It is none of the three.

    Example:
        >>> layer = STDeformAttn(embed_dim=32, num_points=4)
        >>> video = torch.rand(1, 24, 32)
        >>> class Encoder(torch.nn.Module):
        ...     def forward(self, video):
        ...         return layer(video, reference_grid([(2, 3, 4)]), video, [(2, 3, 4)])
        >>> with export_form("gather"):
        ...     program = torch.export.export(Encoder(), (video,))
        >>> any("stdeform" in str(node.target) for node in program.graph.nodes)
        False
    """
    if form not in FORMS and not (isinstance(form, str) and _NODE.fullmatch(form)):
        raise ValueError(
            f"form must be {', '.join(FORMS)} or the domain::Name of a custom node, got {form!r}"
        )
    token = _requested.set(form)
    try:
        yield
    finally:
        _requested.reset(token)


def is_exporting() -> bool:
    """Whether a model is traced or exported, to run where this library may not be."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if hasattr(torch.compiler, "is_exporting"):
        return tracing or torch.compiler.is_exporting()
    return tracing or torch.onnx.is_in_onnx_export()  # all that PyTorch 2.6 tells


def is_due() -> bool:
    """Whether a recorded call has to be standard operations at once: no decomposition follows."""
    return is_exporting() and (_requested.get() is not None or torch.onnx.is_in_onnx_export())


def is_due_in_program() -> bool:
    """The same for a program of `torch.export`, which an export to ONNX decomposes later."""
    return is_exporting() and _requested.get() is not None and not torch.onnx.is_in_onnx_export()


def form_of(num_axes: int) -> str:
    """The form of a call: the one that was asked for, or the default."""
    return _requested.get() or _BY_AXES[num_axes]


# A compiler takes what they return for a constant.
is_due._dynamo_marked_constant = True  # type: ignore[attr-defined]
form_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def attend(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor | None,
    positions: Tensor,
    scores: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    """The operator as standard operations, by the arguments of the registered one.

    See `stdeform._ops`. The decomposition that `torch.onnx.export` finds.
    """
    samples = Samples.of_call(
        value, spatial_shapes, reference_points, positions, scores, num_points
    )
    form = form_of(len(samples.shapes[0]))
    wide = value.to(samples.weights.dtype)
    if form in FORMS:
        return FORMS[form](wide, samples).to(value.dtype)
    return _custom_node.attend(form, wide, samples).to(value.dtype)
