"""Starts a model from the weights of another: loads the entries that fit, and reports all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from defvis.config import BackboneConfig
from defvis.data.categories import difference
from defvis.models.model import DefVIS
from defvis.pretrained.conversion import Converter, recognise
from defvis.pretrained.tensor_file import CheckpointError, read_tensors


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a file of weights.

    Attributes:
        source: Project of the weights: "torchvision", "vistr", "deformable-detr" or "defvis".
        loaded: Entries of the model that now hold the file's values.
        skipped: Entries of the file that were not used, and why.
        missing: Entries of the model that keep the values they had.
    """

    source: str
    loaded: tuple[str, ...]
    skipped: dict[str, str]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.source} weights: {len(self.loaded)} entries loaded, "
            f"{len(self.skipped)} of the file skipped, {len(self.missing)} of the model missing"
        ]
        lines += [f"  skipped {name}: {why}" for name, why in self.skipped.items()]
        lines += [f"  missing {name}" for name in self.missing]
        return "\n".join(lines)


def load_weights(
    model: DefVIS, path: Path, classes: tuple[Sequence[int], Sequence[str]] | None = None
) -> LoadReport:
    """Copies from a file of weights into a model whatever fits its names and shapes.

    The file may hold a torchvision ResNet (for the backbone), VisTR, Deformable DETR, or a
    checkpoint of this program; as a state dict, alone or under "model" or "state_dict", from
    `torch.save` or as safetensors. No code in it can run.

    Across kinds of attention, value and output projections are taken over; 2-D sampling offsets
    become 3-D ones that spread over t as an untrained layer's do. The layers that name a class are
    not taken from a checkpoint of this program if its classes have other names.

    Args:
        model: The model to fill.
        path: The file.
        classes: Ids and names of the model's classes, if they are known.

    Raises:
        CheckpointError: If the file cannot be read safely.
        ValueError: If nothing in it fits.
    """
    entries, trained_on = _read(path)
    state = {_bare(name): value for name, value in entries.items()}
    source = recognise(state)
    foreign = _other_classes(classes, trained_on)
    own = model.state_dict()
    converter = Converter(model, state, source)
    found: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for name in state:
        if foreign and _CLASSES.match(name):
            skipped[name] = f"was trained on other classes: {foreign}"
            continue
        try:
            converted = converter.convert(name)
        except (IndexError, RuntimeError, TypeError, ValueError):  # Named like one that is known.
            skipped[name] = f"has a form that is not known, shape {list(state[name].shape)}"
            continue
        fitting = {
            target: value
            for target, value in converted.items()
            if target in own and own[target].shape == value.shape
        }
        found.update(fitting)
        if not fitting:
            skipped[name] = _reason(converted, own)
    if not found:
        raise ValueError(f"no entry of {path} fits the model; it holds {source} weights")
    model.load_state_dict(found, strict=False)
    missing = tuple(name for name in own if name not in found)
    return LoadReport(source, tuple(found), skipped, missing)


def warn_of_random_frozen_parts(config: BackboneConfig, report: LoadReport | None) -> None:
    """Warns if parts of the backbone that will not be trained have not been loaded either.

    Args:
        config: The backbone's.
        report: Of what was loaded into the model at the start, None if nothing.
    """
    loaded = report is not None and any(name.startswith("backbone.") for name in report.loaded)
    if (config.frozen_norm or config.frozen_stages) and not config.name and not loaded:
        warnings.warn(
            "parts of the backbone are frozen at random values; name a trained backbone, or a "
            "file of weights to start from",
            stacklevel=2,
        )


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file, by name.

    Raises:
        CheckpointError: If the file is missing or broken, or needs more than tensors and plain
            containers to be read.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[list[int], list[str]] | None]:
    """Tensors by name, and ids and names of the classes if it is a checkpoint of this program."""
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors, None
        content = read_tensors(path)
    except (OSError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"weights {path} cannot be read: {error}") from error
    classes = _classes(content)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(
            f"weights {path} must hold a state dict, got {type(content).__name__}"
        )
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors, classes


def _classes(content: Any) -> tuple[list[int], list[str]] | None:
    found = content.get("categories") if isinstance(content, dict) else None
    ids, names = (found.get("ids"), found.get("names")) if isinstance(found, dict) else (None, None)
    if not isinstance(ids, list) or not isinstance(names, list) or len(ids) != len(names):
        return None
    return ids, names


def _other_classes(
    own: tuple[Sequence[int], Sequence[str]] | None, theirs: tuple[list[int], list[str]] | None
) -> str:
    """The first class with another name, in words; "" if there is none or nothing is known."""
    if own is None or theirs is None or list(own[1]) == list(theirs[1]):
        return ""
    return difference(*own, *theirs)


# The layers whose rows are classes.
_CLASSES = re.compile(
    r"decoder\.class_heads\.\d+\.(frame|sequence)\.|(backbone|memory)_classes\.project\."
)


def _bare(name: str) -> str:
    """A name without what wrappers put before it."""
    for prefix in ("module.", "vistr.", "detr."):
        name = name.removeprefix(prefix)
    return name


def _reason(converted: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    known = {name: value for name, value in converted.items() if name in own}
    if not known:
        return "has no counterpart in the model"
    name, value = next(iter(known.items()))
    return f"has shape {list(value.shape)}, but {name} {list(own[name].shape)}"
