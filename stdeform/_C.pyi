"""Types of the compiled extension, csrc/bindings.cpp.

A gradient without elements is not computed. `cuda_*` and `CudaBackward` exist only in builds with
CUDA.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

Inputs: TypeAlias = tuple[
    Sequence[int],  # spatial_shapes, L * N sizes
    Tensor,  # value, [B, S, M, D]
    Tensor,  # positions, [B, Q, M, P, N], or [B, Q, M, L, K, N] without gaps between levels
    Tensor,  # scores, [B, Q, M, P] or [B, Q, M, L, K]
    Tensor | None,  # reference points, [B, Q, L, N or 2N]
    Sequence[int],  # num_points, L of them, or none: as many on each level
]
Grads: TypeAlias = tuple[Tensor, ...]  # of value, reference points, positions and scores

def usable_isas() -> list[str]: ...
def openmp_runtime() -> str: ...  # the file that PyTorch has loaded; "" if it has none
def cpu_forward(
    isa: str,  # "": the fastest one
    num_threads: int,
    use_all_threads: bool,
    inputs: Inputs,
    out: Tensor,  # [B, Q, M * D], written
    /,
) -> None: ...
def cpu_backward(
    isa: str,
    num_threads: int,
    use_all_threads: bool,
    inputs: Inputs,
    grad_out: Tensor,  # [B, Q, M * D]
    grads: Grads,  # written, in the shapes of the inputs
    /,
) -> None: ...
def cuda_devices() -> tuple[int, str]: ...  # how many can run the kernels; if none, why
def cuda_forward(
    device: int,
    stream: int,  # a cudaStream_t
    tuning: Mapping[str, int],  # fields of Tuning in csrc/cuda/params.h
    inputs: Inputs,
    out: Tensor,
    /,
) -> None: ...

class CudaBackward:
    """A backward of known workspace size that is not enqueued yet."""

    def __init__(
        self,
        tuning: Mapping[str, int],
        deterministic: bool,
        inputs: Inputs,
        grad_out: Tensor,
        grads: Grads,  # shapes and dtypes: csrc/cuda/api.h
        /,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...
    def enqueue(self, device: int, stream: int, workspace: int, /) -> None: ...
