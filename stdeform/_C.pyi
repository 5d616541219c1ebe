"""Types of the compiled extension, csrc/bindings.cpp.

A gradient without elements is not computed. `cuda_*` and `CudaBackward` exist only in builds with
CUDA.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

def usable_isas() -> list[str]: ...
def cpu_forward(
    isa: str,  # "": the fastest one
    num_threads: int,
    use_all_threads: bool,
    spatial_shapes: Sequence[int],  # L * N sizes
    value: Tensor,  # [B, S, M, D]
    positions: Tensor,  # [B, Q, M, P, N], or [B, Q, M, L, K, N] without gaps between levels
    scores: Tensor,  # [B, Q, M, P] or [B, Q, M, L, K]
    reference: Tensor | None,  # [B, Q, L, N or 2N]
    num_points: Sequence[int],  # L of them, or none: as many on each level
    out: Tensor,  # [B, Q, M * D], written
    /,
) -> None: ...
def cpu_backward(
    isa: str,
    num_threads: int,
    use_all_threads: bool,
    spatial_shapes: Sequence[int],
    value: Tensor,
    positions: Tensor,
    scores: Tensor,
    reference: Tensor | None,
    num_points: Sequence[int],
    grad_out: Tensor,  # [B, Q, M * D]
    grad_value: Tensor,  # this and the next three are written, in the shapes of the inputs
    grad_reference: Tensor,
    grad_positions: Tensor,
    grad_scores: Tensor,
    /,
) -> None: ...
def cuda_devices() -> tuple[int, str]: ...  # how many can run the kernels; if none, why
def cuda_forward(
    device: int,
    stream: int,  # a cudaStream_t
    tuning: Mapping[str, int],  # fields of Tuning in csrc/cuda/params.h
    spatial_shapes: Sequence[int],
    value: Tensor,
    positions: Tensor,
    scores: Tensor,
    reference: Tensor | None,
    num_points: Sequence[int],
    out: Tensor,
    /,
) -> None: ...

class CudaBackward:
    """A backward of known workspace size that is not enqueued yet."""

    def __init__(
        self,
        tuning: Mapping[str, int],
        deterministic: bool,
        spatial_shapes: Sequence[int],
        value: Tensor,
        positions: Tensor,
        scores: Tensor,
        reference: Tensor | None,
        num_points: Sequence[int],
        grad_out: Tensor,
        grad_value: Tensor,  # shapes and dtypes: csrc/cuda/api.h
        grad_reference: Tensor,
        grad_positions: Tensor,
        grad_scores: Tensor,
        /,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...
    def enqueue(self, device: int, stream: int, workspace: int, /) -> None: ...
