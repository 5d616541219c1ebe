"""Models as ONNX files, run by ONNX Runtime and OpenVINO."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree

import stdeform
from benchmarks.subjects import runtimes

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")  # which PyTorch's newer exporter needs


def to_onnx(
    model: nn.Module,
    inputs: tuple[Any, ...],
    path: Path,
    *,
    free: Sequence[Sequence[int]] = (),
    form: str | None = None,
    dynamo: bool = True,
    **settings: Any,
) -> Exported:
    """Exports a model.

    Args:
        model: Takes tensors and lists of them.
        inputs: An example.
        path: The file.
        free: The axes of each tensor whose sizes may differ from those of the example.
        form: For `export_form`; None does without it.
        dynamo: Which of PyTorch's two exporters.
        settings: Passed on to the exporter.
    """
    leaves, spec = _pytree.tree_flatten(inputs)
    free = free or [()] * len(leaves)
    if dynamo:
        axes = [dict.fromkeys(each, Dim.DYNAMIC) for each in free]
        settings["dynamic_shapes"] = _pytree.tree_unflatten(axes, spec)
    else:
        settings["input_names"] = [f"input_{index}" for index in range(len(leaves))]
        settings["dynamic_axes"] = dict(zip(settings["input_names"], map(list, free), strict=True))
    chosen = contextlib.nullcontext() if form is None else stdeform.export_form(form)
    # PyTorch's own deprecations; that one exporter is old, and that checks read sizes in it.
    with chosen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, path, dynamo=dynamo, **settings)
    return Exported(path)


class Exported:
    """An ONNX file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        graph = onnx.load(path, load_external_data=False).graph
        self.nodes = list(graph.node)
        ranks = [len(entry.type.tensor_type.shape.dim) for entry in graph.value_info]
        self.largest_rank = max(ranks, default=0)
        self.operations = [node.op_type for node in self.nodes]

    def onnxruntime(self, *inputs: Any) -> list[Tensor]:
        """The results of ONNX Runtime on the CPU."""
        return self._run(self.path, inputs)

    @staticmethod
    def _run(model: Any, inputs: Sequence[Any]) -> list[Tensor]:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        feed = dict(zip(names, _arrays(inputs), strict=True))
        return [torch.from_numpy(result) for result in session.run(None, feed)]

    def onnxruntime_until(self, node: Any, *inputs: Any) -> list[Tensor]:
        """The inputs of a node that no runtime knows, as ONNX Runtime computes them."""
        model = onnx.load(self.path)
        index = [entry.output for entry in model.graph.node].index(node.output)
        del model.graph.node[index:], model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.input)
        return self._run(model.SerializeToString(), inputs)

    def openvino(self, *inputs: Any) -> list[Tensor]:
        """The results of OpenVINO on the CPU, in float32."""
        return run_openvino(self.path, inputs)


def run_openvino(model: Any, inputs: Sequence[Any]) -> list[Tensor]:
    """The results of a model or a file of one in OpenVINO, on the CPU in float32."""
    core = runtimes.openvino_core(openvino)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(_arrays(inputs))
    return [torch.from_numpy(np.array(results[output])) for output in compiled.outputs]


def _arrays(inputs: Sequence[Any]) -> list[Any]:
    return [tensor.numpy() for tensor in _pytree.tree_leaves(inputs)]
