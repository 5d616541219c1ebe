"""How the operator leaves PyTorch: as standard operations, in one of two forms.

`torch.onnx.export` finds the operator's decomposition here and takes the form that is fastest in
ONNX Runtime; `export_form` chooses another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import _custom_node, _gather, _grid_sample
from ._samples import Samples

__all__ = ["FORMS", "export_form"]

FORMS = {"grid_sample": _grid_sample.attend, "gather": _gather.attend}
_BY_AXES = {2: "grid_sample", 3: "gather"}  # of ONNX Runtime, docs/guide/export.md
_requested: str | None = None


@contextlib.contextmanager
def export_form(form: str) -> Iterator[None]:
    """Chooses the standard operations of which an exported operator consists.

    Calls of the layers and functions that are recorded inside, by `torch.onnx.export`,
    `torch.export`, `torch.jit.trace` or a library on top of one of them, are written as

    - "grid_sample": a GridSample per level. Its 5-D form, for N = 3, needs opset 20 and is missing
      in many runtimes.
    - "gather": gathers of pairs of cells; no GridSample, no tensor of more than five axes.
    - "domain::Name": one node of this name in an ONNX graph, for a runtime with a plugin. Its
      inputs are the value [B, S, M, D], `spatial_shapes` [L, N] and the first cell of each level
      [L], both int32, locations [B, Q, M, L, K, N] and weights [B, Q, M, L, K]; its result is
      [B, Q, M, D]. Points that differ by level make the last two [B, Q, M, P, N] and [B, Q, M, P],
      and are in the attribute `num_points`. Floating inputs are float32, or float64.

    Outside, `torch.onnx.export` takes what is faster in ONNX Runtime, GridSample for N = 1 and 2
    and gathers for N = 3, and everybody else keeps the operator whole. Sizes may be dynamic: batch,
    queries, and the sizes of levels. Calls that are not recorded, and those of torch.compile,
    compute as ever.

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
    domain, separator, name = form.partition("::")
    if form not in FORMS and not (domain and separator and name):
        raise ValueError(
            f"form must be {', '.join(FORMS)} or the domain::Name of a custom node, got {form!r}"
        )
    global _requested
    before, _requested = _requested, form
    try:
        yield
    finally:
        _requested = before


def is_exporting() -> bool:
    """Whether a model is traced or exported, to run where this library may not be."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if hasattr(torch.compiler, "is_exporting"):
        return tracing or torch.compiler.is_exporting()
    return tracing or torch.onnx.is_in_onnx_export()  # all that PyTorch 2.6 tells


def is_requested() -> bool:
    """Whether a call is being exported inside `export_form`."""
    return _requested is not None and is_exporting()


def is_due() -> bool:
    """Whether an exported call has to be standard operations at once: no decomposition follows."""
    return is_exporting() and (_requested is not None or torch.onnx.is_in_onnx_export())


is_due._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    form = _requested or _BY_AXES[len(samples.shapes[0])]
    wide = value.to(samples.weights.dtype)
    if form in FORMS:
        return FORMS[form](wide, samples).to(value.dtype)
    return _custom_node.attend(form, wide, samples).to(value.dtype)
