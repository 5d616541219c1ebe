"""Other libraries' operators, held against ours where they are at hand; none is needed.

They are installed, or their checkouts lie below a folder that `--peers` names, where what has to be
built is built. Each is imported when it is prepared and not before, and given what it takes: those
that know nothing of offsets and logits get locations and weights, for which PyTorch pays.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.subjects.prepared import Prepared, Variant, on_problem
from benchmarks.workloads import DTYPES, WORKLOADS, Workload

_PACKED_POINTS = 8  # the most that kernels with softmax take per level


@dataclass(frozen=True)
class Levels:
    """What operators want to know of a value.

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


# Called with value, levels, locations [B, Q, M, L, K, N] and weights or logits [B, Q, M, L, K].
Core = Callable[[Tensor, Levels, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """An operator of another library.

    Attributes:
        name: What it is called on the command line and in the results.
        module: Where it is imported from.
        adapt: Makes a `Core` of the imported module.
        workload: What it is timed on, in a dtype that it has.
        takes_logits: Whether it does the softmax, and takes the logits in the value's dtype.
        extension: What its setup.py builds, by the name in there; "" if there is nothing to build.
        on_cpu: Whether it runs there.
    """

    name: str
    module: str
    adapt: Callable[[Any], Core]
    workload: Workload
    takes_logits: bool = False
    extension: str = ""
    on_cpu: bool = False

    @property
    def variant(self) -> Variant:
        """It, to be measured."""
        return Variant(
            self.name,
            True,
            self._prepare,
            axes=(len(self.workload.spatial_shapes[0]),),
            dtypes=(self.workload.dtype,),
            gradients_in=DTYPES[self.workload.dtype] if self.takes_logits else None,
            on_cpu=self.on_cpu,
        )

    def _prepare(self, workload: Workload, seed: int) -> Prepared:
        core = self.adapt(importlib.import_module(self.module))

        def attend(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            levels = _levels(workload.spatial_shapes, value.device)
            locations = points[:, :, None, :, None] + offsets / levels.cells
            if self.takes_logits:
                return core(value, levels, locations, logits)
            weights = logits.flatten(-2).softmax(-1).view_as(logits)
            return core(value, levels, locations.to(value.dtype), weights.to(value.dtype))

        return on_problem(attend, workload, seed)


@functools.cache
def _levels(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> Levels:
    sizes = torch.tensor(shapes, device=device)
    ends = sizes.prod(1).cumsum(0)
    cells = sizes.flip(1)[:, None].float()
    return Levels(shapes, sizes, torch.cat([ends.new_zeros(1), ends[:-1]]), cells)


# -- adapters ----------------------------------------------------------------------------------


class _DeformableDetr(torch.autograd.Function):
    """The compiled functions of Deformable DETR's module, which know nothing of autograd."""

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


def _deformable_detr(module: Any) -> Core:
    def core(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        arguments = value, levels.sizes, levels.starts, locations, weights
        out: Tensor = _DeformableDetr.apply(module, *arguments)  # type: ignore[no-untyped-call]
        return out

    return core


def _mmcv(module: Any) -> Core:
    apply = module.MultiScaleDeformableAttnFunction.apply
    return lambda value, levels, locations, weights: apply(
        value, levels.sizes, levels.starts, locations, weights, len(value)
    )


def _transformers(module: Any) -> Core:
    layer = module.MultiScaleDeformableAttention()
    return lambda value, levels, locations, weights: layer(
        value, levels.sizes, levels.shapes, levels.starts, locations, weights, len(value)
    )


def _msda_triton(module: Any) -> Core:
    # Not the function around it, which hides what goes wrong and goes on without Triton.
    apply = module.triton_multiscale_deformable_attention
    return lambda value, levels, locations, weights: apply(
        value, levels.sizes, locations, weights, "zeros", False
    ).flatten(2)


def _dcnv4(module: Any) -> Core:
    return _packed(module.FlashDeformAttnFunction.apply)


def _ops3d(module: Any) -> Core:
    return _packed(lambda *arguments: module.FlashDeformAttnFunction.apply(*arguments, True))


def _packed(apply: Callable[..., Tensor]) -> Core:
    """Locations and logits in one tensor, in the value's dtype; few points per level.

    More points are asked for as several levels which all are the same cells.
    """

    def core(value: Tensor, levels: Levels, locations: Tensor, logits: Tensor) -> Tensor:
        points = logits.shape[-1]
        times = -(-points // _PACKED_POINTS)
        packed = torch.cat([locations.flatten(-3), logits.flatten(-2)], -1).to(value.dtype)
        sizes = levels.sizes.repeat_interleave(times, 0)
        starts = levels.starts.repeat_interleave(times)
        return apply(value, sizes, starts, packed, len(value), points // times)

    return core


_IMAGES = WORKLOADS["detr-encoder"]
_VIDEO = WORKLOADS["paper-encoder"]
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "deformable-detr",
            "MultiScaleDeformableAttention",
            _deformable_detr,
            _IMAGES,
            extension="MultiScaleDeformableAttention",
        ),
        Peer("mmcv", "mmcv.ops.multi_scale_deform_attn", _mmcv, _IMAGES),
        Peer(
            "transformers",
            "transformers.models.deformable_detr.modeling_deformable_detr",
            _transformers,
            _IMAGES,
            on_cpu=True,
        ),
        Peer("msda-triton", "msda_triton.frontend", _msda_triton, _IMAGES),
        Peer(
            "dcnv4",
            "DCNv4.functions.flash_deform_attn_func",
            _dcnv4,
            replace(_IMAGES, dtype="float16", exact_in="float16"),
            takes_logits=True,
            extension="DCNv4.ext",
        ),
        Peer(
            "ops3d",
            "ops3d",
            _ops3d,
            replace(_VIDEO, dtype="bfloat16", exact_in="bfloat16"),
            takes_logits=True,
            extension="ops3d._C",
        ),
    )
}


# -- where they are ----------------------------------------------------------------------------


def is_installed(name: str) -> bool:
    """Whether a peer's package can be imported as things are; nothing is imported."""
    return importlib.util.find_spec(PEERS[name].module.partition(".")[0]) is not None


def place_of(name: str, folder: Path) -> Path | None:
    """The place below a folder that a peer is imported from, None if it is not there."""
    peer = PEERS[name]
    if peer.extension:
        named = (f'"{peer.extension}"', f"'{peer.extension}'")
        for path in sorted(folder.rglob("setup.py")):
            text = path.read_text(errors="replace")
            if any(quoted in text for quoted in named):
                return path.parent
        return None
    package = peer.module.partition(".")[0]
    return next((path.parents[1] for path in sorted(folder.rglob(f"{package}/__init__.py"))), None)


def bring(name: str, folder: Path) -> None:
    """Makes a peer importable, built if it has to be.

    Args:
        name: Of `PEERS`.
        folder: With checkouts of other libraries; extensions are built in there.

    Raises:
        RuntimeError: It is nowhere, or its extension does not build; says what the build said last.
    """
    if is_installed(name):
        return
    place = place_of(name, folder)
    if place is None:
        raise RuntimeError(f"neither installed nor below {folder.name}/")
    extension = PEERS[name].extension
    if extension and not any(place.glob(f"{extension.replace('.', '/')}.*so")):
        _build(place)
    sys.path.append(str(place))
    importlib.invalidate_caches()


def _build(place: Path) -> None:
    """Runs a setup.py, and puts each extension where the package looks for it."""
    built = place / "build" / "lib"
    environment = dict(os.environ)
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(0)
        environment |= {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "FORCE_CUDA": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(built)]
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        error = next((line for line in said if "error:" in line), said[-1] if said else "nothing")
        raise RuntimeError(f"its extension does not build: {error.strip()}")
    for library in built.rglob("*.so"):
        target = place / library.relative_to(built)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
