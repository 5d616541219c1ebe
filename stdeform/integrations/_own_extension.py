"""Projects that compile the extension `MultiScaleDeformableAttention` as their own module `_C`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

from torch import nn

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
        if self._extension not in sys.modules and not self._is_compiled():
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

    def _is_compiled(self) -> bool:
        """Whether there is an extension, without importing the project, which would import it."""
        project = importlib.util.find_spec(self._project)
        places = project.submodule_search_locations if project else None
        found = (each.find_spec(self._extension, places) for each in sys.meta_path)
        return any(spec is not None for spec in found)

    def _replacements(self) -> Iterator[Replacement]:
        layers = _projects.find_module(self._layers)
        yield _projects.replace(
            layers, "multi_scale_deformable_attn_pytorch", functions.ms_deform_attn_core_pytorch
        )
        layer = getattr(layers, "MultiScaleDeformableAttention", nn.Module)
        if not issubclass(layer, nn.Module):
            raise RuntimeError(
                f"{self._project} has put a dummy in the place of its layer, since it could not "
                f"import {self._extension}: call enable before {self._project} is imported"
            )
        if hasattr(layers, "MultiScaleDeformableAttnFunction"):
            yield Replacement(layers, "_C", extension)
