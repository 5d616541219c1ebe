"""Types of the compiled extension, csrc/bindings.cpp.

Tensors are passed as DLPack capsules. A gradient that is None is not computed. `cuda_*` and
`CudaBackward` exist only in builds with CUDA.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Capsule: TypeAlias = Any  # types.CapsuleType exists from Python 3.13 on

def usable_isas() -> list[str]: ...
def cpu_forward(
    isa: str,  # "": the fastest one
    num_threads: int,
    use_all_threads: bool,
    spatial_shapes: Sequence[int],  # L * N sizes
    value: Capsule,  # [B, S, M, D]
    positions: Capsule,  # [B, Q, M, P, N], or [B, Q, M, L, K, N] without gaps between levels
    scores: Capsule,  # [B, Q, M, P] or [B, Q, M, L, K]
    reference: Capsule | None,  # [B, Q, L, N or 2N]
    num_points: Sequence[int],  # L of them, or none: as many on each level
    out: Capsule,  # [B, Q, M * D], written
    /,
) -> None: ...
def cpu_backward(
    isa: str,
    num_threads: int,
    use_all_threads: bool,
    spatial_shapes: Sequence[int],
    value: Capsule,
    positions: Capsule,
    scores: Capsule,
    reference: Capsule | None,
    num_points: Sequence[int],
    grad_out: Capsule,  # [B, Q, M * D]
    grad_value: Capsule | None,  # this and the next three are written, in the shapes of the inputs
    grad_reference: Capsule | None,
    grad_positions: Capsule | None,
    grad_scores: Capsule | None,
    /,
) -> None: ...
def cuda_devices() -> tuple[int, str]: ...  # how many can run the kernels; if none, why
def cuda_forward(
    device: int,
    stream: int,  # a cudaStream_t
    tuning: Mapping[str, int],  # fields of Tuning in csrc/cuda/params.h
    spatial_shapes: Sequence[int],
    value: Capsule,
    positions: Capsule,
    scores: Capsule,
    reference: Capsule | None,
    num_points: Sequence[int],
    out: Capsule,
    /,
) -> None: ...

class CudaBackward:
    """A backward of known workspace size that is not enqueued yet."""

    def __init__(
        self,
        tuning: Mapping[str, int],
        deterministic: bool,
        spatial_shapes: Sequence[int],
        value: Capsule,
        positions: Capsule,
        scores: Capsule,
        reference: Capsule | None,
        num_points: Sequence[int],
        grad_out: Capsule,
        grad_value: Capsule | None,  # shapes and dtypes: csrc/cuda/api.h
        grad_reference: Capsule | None,
        grad_positions: Capsule | None,
        grad_scores: Capsule | None,
        /,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...
    def enqueue(self, device: int, stream: int, workspace: int, /) -> None: ...
