"""Projects that compile the extension `MultiScaleDeformableAttention` as their own module `_C`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

from . import _projects
from ._replacing import Replacement, Switch
from .msda import extension, functions


class OwnExtension:
    """The operator in such a project, in the layer for the CPU and in that for CUDA.

    Args:
        project: The project's name.
        layers: The name of the module with the layer.
    """

    def __init__(self, project: str, layers: str) -> None:
        self._project = project
        self._layers = layers
        self._extension = f"{project}._C"
        self._switch = Switch(self._replacements)

    def enable(self) -> list[str]:
        """Replaces the function for the CPU and the extension; returns the names of both."""
        _projects.find_module(self._project)
        try:
            importlib.import_module(self._extension)
        except ImportError:  # not compiled, or for another PyTorch
            sys.modules[self._extension] = extension
        try:
            return self._switch.enable()
        except Exception:
            self.disable()
            raise

    def disable(self) -> None:
        """Undoes `enable`."""
        self._switch.disable()
        if sys.modules.get(self._extension) is extension:
            del sys.modules[self._extension]

    def _replacements(self) -> Iterator[Replacement]:
        layers = _projects.find_module(self._layers)
        yield _projects.replace(
            layers, "multi_scale_deformable_attn_pytorch", functions.ms_deform_attn_core_pytorch
        )
        if hasattr(layers, "MultiScaleDeformableAttnFunction"):
            yield Replacement(layers, "_C", extension)
