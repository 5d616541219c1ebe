"""What is exported: a detector on images, and the operator alone on videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.subjects import plain_attention
from benchmarks.subjects.detector import NATIVE, PLAIN, make_detectors, make_images
from benchmarks.workloads import WORKLOADS, Workload, make_inputs
from stdeform import st_deform_attn_from_offsets


@dataclass(frozen=True)
class DetectorProblem:
    """A detector on images.

    Attributes:
        height: Of the images, in pixels.
        width: The same.
        batch: B.
        sizes: Of `Detector`, where they are not the default ones.
    """

    height: int
    width: int
    batch: int
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """In the results."""
        return f"detector, {self.height} x {self.width} px, batch {self.batch}"

    def models(self, seed: int) -> Mapping[str, nn.Module]:
        """With each attention, by `NATIVE` and `PLAIN`, and the same weights."""
        return make_detectors(seed, **self.sizes)

    def inputs(self, seed: int) -> dict[str, Tensor]:
        """Images and padding, by the names of the arguments in their order."""
        images, padding = make_images(self.batch, self.height, self.width, seed)
        return {"images": images, "padding": padding}

    def shrunk(self) -> DetectorProblem:
        """The same kind of problem on small images: it loads what a call loads."""
        return dataclasses.replace(self, height=64, width=64)


@dataclass(frozen=True)
class OperatorProblem:
    """The operator alone on a workload."""

    workload: Workload

    @property
    def label(self) -> str:
        """In the results."""
        size = " x ".join(map(str, self.workload.spatial_shapes[0]))
        return f"{self.workload.label}, {size} cells"

    def models(self, seed: int) -> Mapping[str, nn.Module]:
        """Each attention, by `NATIVE` and `PLAIN`; there are no weights."""
        shapes = self.workload.spatial_shapes
        functions = {
            NATIVE: st_deform_attn_from_offsets,
            PLAIN: plain_attention.attend_from_offsets,
        }
        return {name: _Operator(function, shapes) for name, function in functions.items()}

    def inputs(self, seed: int) -> dict[str, Tensor]:
        """All tensors of the workload but the gradient, likewise."""
        tensors = make_inputs(self.workload, seed)._asdict()
        del tensors["grad_out"]
        return tensors

    def shrunk(self) -> OperatorProblem:
        """The same kind of problem on a handful of cells."""
        return OperatorProblem(self.workload.shrunk())


class _Operator(nn.Module):
    def __init__(self, function: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...]):
        super().__init__()
        self._function, self._shapes = function, shapes

    def forward(
        self,
        value: Tensor,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        return self._function(
            value, self._shapes, reference_points, sampling_offsets, attention_logits
        )


def _short(workload: str, **changes: Any) -> OperatorProblem:
    """A workload of Deformable VisTR with a third of its frames."""
    shapes = ((12, 10, 17),)
    short = dataclasses.replace(WORKLOADS[workload], spatial_shapes=shapes, **changes)
    return OperatorProblem(short)


_SMALL = {"width": 64, "num_layers": 1, "num_queries": 10}
Problem = DetectorProblem | OperatorProblem
PROBLEMS: dict[str, Problem] = {
    "detector": DetectorProblem(192, 256, batch=2),
    "detector-480": DetectorProblem(480, 480, batch=1),
    "video-encoder": _short("paper-encoder", name="video-encoder"),
    "video-decoder": _short("paper-decoder", name="video-decoder", num_object_queries=120),
}
QUICK: dict[str, Problem] = {
    "detector": DetectorProblem(64, 96, batch=2, sizes=_SMALL),
    "video-encoder": OperatorProblem(WORKLOADS["tiny"]),
}
