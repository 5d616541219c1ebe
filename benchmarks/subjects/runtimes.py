"""Runtimes of exported models, on the CPU in float32.

Without torch: a process that only runs a model holds nothing else, and its memory is the model's.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.memory import peak_of

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], list[NDArray[Any]]]  # inputs by name to the outputs in their order


class UnsupportedError(RuntimeError):
    """A runtime has no implementation of an operation of a model."""


def load(runtime: str, path: str, threads: int) -> Run:
    """A model that is ready to run.

    Args:
        runtime: Of `RUNTIMES`.
        path: An ONNX file.
        threads: What it may use.

    Raises:
        UnsupportedError: The runtime cannot run it.
        ModuleNotFoundError: The runtime is not installed.
    """
    return RUNTIMES[runtime](importlib.import_module(runtime), path, threads)


def peak_here(runtime: str, path: str, inputs: str, threads: int) -> Iterator[dict[str, Any]]:
    """The peak of the first call of a model in this process, which has to be fresh.

    Args:
        runtime: As of `load`, like `path` and `threads`.
        path: An ONNX file.
        inputs: A file of `numpy.savez`.
        threads: What it may use.
    """
    arrays = dict(np.load(inputs))
    run = load(runtime, path, threads)
    yield dataclasses.asdict(peak_of(lambda: run(arrays)))


def _onnxruntime(module: Any, path: str, threads: int) -> Run:
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    session = module.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(None, inputs)
        return outputs

    return run


@functools.cache
def openvino_core(module: Any) -> Any:
    """OpenVINO's core, one that lives as long as the process.

    A core's plugin gives the thread that compiles an alternate signal stack. If the core ends on
    another thread, of OpenVINO's own for one, its memory is unmapped but stays the stack of
    signals, and the next signal that Python handles ends the process without a word.
    """
    return module.Core()


def _openvino(module: Any, path: str, threads: int) -> Run:
    core = openvino_core(module)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    try:
        request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()
    except RuntimeError as error:
        *_, reason = str(error).strip().splitlines()
        raise UnsupportedError(reason.removeprefix("-- ")) from error

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        outputs = request.infer(inputs, share_inputs=True, share_outputs=True)
        return [outputs[index] for index in range(len(outputs))]

    return run


RUNTIMES: dict[str, Callable[[Any, str, int], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
