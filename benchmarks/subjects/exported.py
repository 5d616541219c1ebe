"""Exported models: in every form and every runtime, and the check of their answers."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure.memory import peak_of
from benchmarks.subjects import runtimes
from benchmarks.subjects.base import WrongAnswerError
from benchmarks.subjects.detector import NATIVE, PLAIN
from benchmarks.subjects.export_problems import PROBLEMS, QUICK, Problem
from stdeform.export import FORMS, export_form

NEEDED = ("onnx", "onnxscript")  # for an export
_TOLERANCE = 1e-5  # of a difference's norm over the norm of what it should be
_OPSET = 20  # the first with a 5-D GridSample


@dataclass(frozen=True)
class Variant:
    """A model somewhere, that can be called.

    Attributes:
        runtime: "pytorch", or of `runtimes.RUNTIMES`.
        form: In PyTorch `NATIVE` or `PLAIN`; of an exported model `PLAIN`, or of ours "default",
            "grid_sample" or "gather".
        call: Returns the outputs in their order.
        version: Of the runtime.
        file: The exported model; None in PyTorch.
    """

    runtime: str
    form: str
    call: Callable[[], Iterable[Any]]
    version: str
    file: Path | None = None

    @property
    def name(self) -> str:
        """In the results."""
        return f"{self.runtime} {self.form}"

    @property
    def plain_name(self) -> str:
        """Of what it is compared with: the plain model in the same runtime."""
        return f"{self.runtime} {PLAIN}"

    @property
    def num_nodes(self) -> int | None:
        """Operations of the exported graph."""
        if self.file is None:
            return None
        model = importlib.import_module("onnx").load(self.file, load_external_data=False)
        return len(model.graph.node)


@dataclass(frozen=True)
class Prepared:
    """A problem wherever it runs.

    Attributes:
        variants: Those in PyTorch first.
        refusals: By their names why others do not run.
        inputs_file: The inputs, for `runtimes.peak_here`.
    """

    variants: list[Variant]
    refusals: dict[str, str]
    inputs_file: Path


def prepare(
    problem: Problem, names: Iterable[str], threads: int, seed: int, folder: Path
) -> Prepared:
    """Exports a problem in every form, loads each into every runtime, and checks the answers.

    Args:
        problem: What is computed.
        names: Of `runtimes.RUNTIMES`.
        threads: Of each runtime.
        seed: Of weights and inputs.
        folder: Where the exported models go.

    Raises:
        WrongAnswerError: A variant computes something else.
    """
    models, inputs = problem.models(seed), problem.inputs(seed)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
    inputs_file = folder / "inputs.npz"
    np.savez(inputs_file, **arrays)
    variants = [
        Variant("pytorch", form, _in_pytorch(models[form], inputs), torch.__version__)
        for form in (NATIVE, PLAIN)
    ]
    refusals: dict[str, str] = {}
    files = _export_all(models, inputs, folder)
    for name, (form, file) in itertools.product(names, files.items()):
        try:
            run = runtimes.load(name, str(file), threads)
        except runtimes.UnsupportedError as error:
            refusals[f"{name} {form}"] = str(error)
            continue
        call = functools.partial(run, arrays)
        variants.append(Variant(name, form, call, importlib.metadata.version(name), file))
    _check(problem.label, *variants)
    return Prepared(variants, refusals, inputs_file)


def _check(label: str, first: Variant, *others: Variant) -> None:
    """Compares all outputs with those of the native kernel in PyTorch."""
    expected = [np.asarray(each) for each in first.call()]
    for variant in others:
        outputs = [np.asarray(each) for each in variant.call()]
        for i, (actual, right) in enumerate(zip(outputs, expected, strict=True)):
            off = float(np.linalg.norm(actual - right) / np.linalg.norm(right))
            if not off <= _TOLERANCE:
                raise WrongAnswerError(
                    f"{label}: output {i} of {variant.name} must be that of {first.name} "
                    f"within {_TOLERANCE:g} of its norm, is off by {off:.3g}"
                )


def peak_here(
    problem: str, quick: bool, form: str, threads: int, seed: int
) -> Iterator[dict[str, Any]]:
    """The peak of a call in PyTorch in this process, which has to be fresh.

    The same kind of call runs before on a small problem, so that libraries are loaded.

    Args:
        problem: Of `QUICK` or `PROBLEMS`.
        quick: Which of them.
        form: `NATIVE` or `PLAIN`.
        threads: torch's.
        seed: Of weights and inputs.
    """
    torch.set_num_threads(threads)
    whole = (QUICK if quick else PROBLEMS)[problem]
    small = whole.shrunk()
    _in_pytorch(small.models(seed)[form], small.inputs(seed))()
    yield dataclasses.asdict(peak_of(_in_pytorch(whole.models(seed)[form], whole.inputs(seed))))


def _in_pytorch(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], Iterable[Any]]:
    def call() -> Iterable[Any]:
        with torch.no_grad():
            outputs = model(**inputs)
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    return call


def _export_all(
    models: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], folder: Path
) -> dict[str, Path]:
    """The files by their forms; a form that the default is is none of its own."""
    default = _export(models[NATIVE], inputs, folder / "default.onnx")
    files = {PLAIN: _export(models[PLAIN], inputs, folder / f"{PLAIN}.onnx"), "default": default}
    for form in FORMS:
        with export_form(form):
            file = _export(models[NATIVE], inputs, folder / f"{form}.onnx")
        if file.read_bytes() != default.read_bytes():
            files[form] = file
    return files


def _export(model: nn.Module, inputs: Mapping[str, Tensor], file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        program = torch.onnx.export(
            model,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=_OPSET,
            input_names=list(inputs),
            verbose=False,
        )
    assert program is not None
    program.save(file)
    return file
