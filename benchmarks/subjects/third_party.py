"""Other libraries' operators as baselines: measured where they are installed; none is needed.

Each is imported when a case is prepared and not before. Those without a softmax of their own get
locations and weights, which PyTorch computes from offsets and logits.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.subjects.base import Case, Implementation, on_problem
from benchmarks.workloads import DTYPES, WORKLOADS, Workload

_PACKED_POINTS = 8  # the most that kernels with softmax take per level


@dataclass(frozen=True)
class Levels:
    """The levels of a value.

    Attributes:
        shapes: One row per level, outermost axis first.
        sizes: The same on the device, int64.
        starts: [L], number of each level's first cell, int64.
        cells: [L, 1, N], the sizes innermost axis first, float32.
    """

    shapes: tuple[tuple[int, ...], ...]
    sizes: Tensor
    starts: Tensor
    cells: Tensor


# Called with value, levels, locations [B, Q, M, L, K, N] and weights or logits [B, Q, M, L, K]; the
# last two are float32 if the value is narrower.
Core = Callable[[Tensor, Levels, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ThirdParty:
    """An operator of another library.

    Attributes:
        name: On the command line and in the results.
        module: Where it is imported from.
        adapt: Makes a `Core` of the imported module.
        workload: What it is timed on by `gpu-check`, in a dtype that it supports.
        other_dtypes: Further ones that it supports, of `DTYPES`.
        takes_logits: Whether it does the softmax, and takes the logits in the value's dtype.
        on_cpu: Whether it runs there.
    """

    name: str
    module: str
    adapt: Callable[[Any], Core]
    workload: Workload
    other_dtypes: tuple[str, ...] = ()
    takes_logits: bool = False
    on_cpu: bool = False

    @property
    def implementation(self) -> Implementation:
        """It, to be measured."""
        return Implementation(
            self.name,
            self._prepare,
            axes=(len(self.workload.spatial_shapes[0]),),
            dtypes=(self.workload.dtype, *self.other_dtypes),
            gradients_in=DTYPES[self.workload.dtype] if self.takes_logits else None,
            on_cpu=self.on_cpu,
        )

    @property
    def is_installed(self) -> bool:
        """Whether its package can be imported; nothing is imported."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    def _prepare(self, workload: Workload, seed: int) -> Case:
        core = self.adapt(importlib.import_module(self.module))

        def attend(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            levels = _levels(workload.spatial_shapes, value.device)
            locations = points[:, :, None, :, None] + offsets / levels.cells
            if self.takes_logits:
                return core(value, levels, locations, logits)
            weights = logits.flatten(-2).softmax(-1).view_as(logits)
            return core(value, levels, locations, weights)

        return on_problem(attend, workload, seed)


@functools.cache
def _levels(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> Levels:
    sizes = torch.tensor(shapes, device=device)
    ends = sizes.prod(1).cumsum(0)
    cells = sizes.flip(1)[:, None].float()
    return Levels(shapes, sizes, torch.cat([ends.new_zeros(1), ends[:-1]]), cells)


class _DeformableDetr(torch.autograd.Function):
    """The compiled functions of Deformable DETR's module, which do not register a gradient."""

    @staticmethod
    def forward(ctx: Any, module: Any, *arguments: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(*arguments)
        out: Tensor = module.ms_deform_attn_forward(*arguments, len(arguments[0]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments = ctx.saved_tensors
        value, locations, weights = ctx.module.ms_deform_attn_backward(
            *arguments, grads[0].contiguous(), len(arguments[0])
        )
        return None, value, None, None, locations, weights


def _detr(module: Any) -> Core:
    apply: Any = functools.partial(_DeformableDetr.apply, module)
    return lambda value, levels, *sampled: apply(value, levels.sizes, levels.starts, *sampled)


def _mmcv(module: Any) -> Core:
    apply = module.MultiScaleDeformableAttnFunction.apply
    return lambda value, levels, *sampled: apply(
        value, levels.sizes, levels.starts, *sampled, len(value)
    )


def _transformers(module: Any) -> Core:
    layer = module.MultiScaleDeformableAttention()
    return lambda value, levels, *sampled: layer(
        value, levels.sizes, levels.shapes, levels.starts, *sampled, len(value)
    )


def _torch_ms_deform_attn(module: Any) -> Core:
    # It computes 16 bits in float32. Under autocast it takes locations and weights of float32 with
    # such a value, and widens it as is done here.
    def core(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        wide = value.to(locations.dtype)
        out: Tensor = module.ms_deform_attn(wide, levels.sizes, levels.starts, locations, weights)
        return out.to(value.dtype)

    return core


def _msda_triton(module: Any) -> Core:
    # Not the function around it, which hides errors and goes on without Triton.
    apply = module.triton_multiscale_deformable_attention
    return lambda value, levels, *sampled: apply(
        value, levels.sizes, *sampled, "zeros", False
    ).flatten(2)


def _deformops(module: Any) -> Core:
    def core(value: Tensor, levels: Levels, locations: Tensor, logits: Tensor) -> Tensor:
        # Logits have to be in the value's dtype; locations may be, and are less to read.
        inputs = (locations.to(value.dtype), logits.flatten(-2).to(value.dtype))
        out: Tensor = module.msda(value, levels.sizes, levels.starts, *inputs, method="softmax")
        return out

    return core


def _flash(*more: object) -> Callable[[Any], Core]:
    """Locations and logits in one tensor, in the value's dtype; few points per level.

    More points are passed as several levels which all are the same cells.
    """

    def adapt(module: Any) -> Core:
        apply = module.FlashDeformAttnFunction.apply

        def core(value: Tensor, levels: Levels, locations: Tensor, logits: Tensor) -> Tensor:
            points = logits.shape[-1]
            times = -(-points // _PACKED_POINTS)
            packed = torch.cat([locations.flatten(-3), logits.flatten(-2)], -1).to(value.dtype)
            sizes = levels.sizes.repeat_interleave(times, 0)
            starts = levels.starts.repeat_interleave(times)
            out: Tensor = apply(value, sizes, starts, packed, len(value), points // times, *more)
            return out

        return core

    return adapt


_IMAGES = WORKLOADS["detr-encoder"]
_IN_BFLOAT16 = replace(_IMAGES, dtype="bfloat16", exact_in="bfloat16")
_IN_FLOAT16 = replace(_IMAGES, dtype="float16", exact_in="float16")
_VIDEO = replace(WORKLOADS["paper-encoder"], dtype="bfloat16", exact_in="bfloat16")
_HF = "transformers.models.deformable_detr.modeling_deformable_detr"
_DEFORMOPS = "deformops.registry"
_DCNV4 = "DCNv4.functions.flash_deform_attn_func"
THIRD_PARTY = {
    each.name: each
    for each in (  # a GPU times them in this order: targets compare with operators for video
        ThirdParty("ops3d", "ops3d", _flash(True), _VIDEO, takes_logits=True),
        ThirdParty("deformops", _DEFORMOPS, _deformops, _IMAGES, takes_logits=True),
        ThirdParty("deformops-bfloat16", _DEFORMOPS, _deformops, _IN_BFLOAT16, takes_logits=True),
        ThirdParty("deformable-detr", "MultiScaleDeformableAttention", _detr, _IMAGES),
        ThirdParty("mmcv", "mmcv.ops.multi_scale_deform_attn", _mmcv, _IMAGES),
        ThirdParty("transformers", _HF, _transformers, _IMAGES, on_cpu=True),
        ThirdParty(
            "torch-ms-deform-attn",
            "torch_ms_deform_attn",
            _torch_ms_deform_attn,
            _IMAGES,
            other_dtypes=("bfloat16", "float16", "float64"),
            on_cpu=True,
        ),
        ThirdParty("msda-triton", "msda_triton.frontend", _msda_triton, _IMAGES),
        ThirdParty("dcnv4", _DCNV4, _flash(), _IN_FLOAT16, takes_logits=True),
    )
}
