"""Compiles a trained model to a package of AOTInductor, which runs without Python."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from torch._inductor import cpp_builder
from torch.export import Dim

from defvis.data.resize_crop import Size
from defvis.export.network import Network
from defvis.export.quiet import quiet
from defvis.models.model import DefVIS
from defvis.training.load_trained import TrainedModel
from stdeform import export_form


def write_aoti(trained: TrainedModel[DefVIS], path: Path, form: str | None, size: Size) -> bool:
    """Compiles the package; needs a C++ compiler.

    Inputs and outputs are those of `Network`, for any number of clips and of frames of one size:
    PyTorch 2.13 fails to compile a model of free height and width (Invalid ranges [0:-1]).

    Args:
        trained: The model.
        path: The file, .pt2.
        form: Of the attention, see `stdeform.export_form`; None keeps the operator whole, and the
            package needs stdeform where it runs.
        size: Height and width of the frames.

    Returns:
        Whether clips may have any number of frames.

    Raises:
        OSError: If there is no C++ compiler.
    """
    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError as error:
        raise OSError("a package of AOTInductor needs a C++ compiler, g++ or $CXX") from error
    network = Network(trained)
    free = [
        {axis: Dim.DYNAMIC for axis, name in axes.items() if name in ("batch", "time")}
        for axes in network.free_axes()
    ]
    with export_form(form) if form else contextlib.nullcontext(), quiet():
        program = torch.export.export(network, network.example(size), dynamic_shapes=tuple(free))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return bool(free[0].keys() - {0})
