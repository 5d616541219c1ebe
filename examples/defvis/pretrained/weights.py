"""Starts a model from the weights of another: loads the entries that fit, and reports all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from defvis.config import BackboneConfig, Config
from defvis.data.categories import difference
from defvis.models.model import DefVIS
from defvis.pretrained.conversion import Converter
from defvis.pretrained.fit import settings_that_fit, unknown
from defvis.pretrained.report import LoadReport, is_counter, shape_reason
from defvis.pretrained.sizes import describe
from defvis.pretrained.weights_file import WeightsFile, read_weights

__all__ = ["LoadReport", "load_weights", "warn_of_random_frozen_parts"]


def load_weights(
    model: DefVIS,
    weights: Path | WeightsFile,
    classes: tuple[Sequence[int], Sequence[str]] | None = None,
) -> LoadReport:
    """Copies from a file of weights into a model whatever fits its names and shapes.

    The file may hold a ResNet of torchvision or transformers (for the backbone), VisTR, Deformable
    DETR, or a checkpoint of this program, of which the weights are taken that it validated with. No
    code in it can run.

    Across kinds of attention, value and output projections are taken over; 2-D sampling offsets
    become 3-D ones that spread over t as an untrained layer's do. The layers that name a class are
    not taken from a checkpoint of this program if its classes have other names, nor sampling points
    if its levels share as many in another way.

    Args:
        model: The model to fill.
        weights: As in `read_weights`, or its result.
        classes: Ids and names of the model's classes, if they are known.

    Raises:
        CheckpointError: If the file cannot be read safely.
        ValueError: If nothing in it fits.
    """
    file = weights if isinstance(weights, WeightsFile) else read_weights(weights)
    foreign = _other_classes(classes, file.classes)
    shares = _other_points(model, file.config)
    own = model.state_dict()
    converter = Converter(model, file.entries, file.source)
    found: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    reasons: dict[str, str] = {}
    strange, inflated = [], []
    for name, entry in file.entries.items():
        if foreign and _CLASSES.match(name):
            skipped[name] = f"was trained on other classes: {foreign}"
            reasons[name] = f"of other classes ({foreign})"
            continue
        if shares and _POINTS.search(name):
            skipped[name] = reasons[name] = shares
            continue
        try:
            converted = converter.convert(name)
        except (IndexError, RuntimeError, TypeError, ValueError):  # Named like one that is known.
            skipped[name] = f"has a form that is not known, shape {list(entry.shape)}"
            strange.append(name)
            continue
        known = {target: value for target, value in converted.items() if target in own}
        fitting = {t: value for t, value in known.items() if own[t].shape == value.shape}
        found.update(fitting)
        inflated += [t for t, value in fitting.items() if value.numel() != entry.numel()]
        for target in known.keys() - fitting.keys():
            reasons[target] = shape_reason(target, known[target].shape, own[target].shape)
        if not known:
            skipped[name] = "has no counterpart in the model"
            strange.append(name)
        elif not fitting:
            target, value = next(iter(known.items()))
            skipped[name] = f"has shape {list(value.shape)}, but {target} {list(own[target].shape)}"
    if all(is_counter(name) for name in found):
        raise ValueError(_nothing_fits(file, model))
    model.load_state_dict(found, strict=False)
    return LoadReport(
        file.source,
        f"{file.path}, {describe(file)}",
        tuple(found),
        skipped,
        tuple(name for name in own if name not in found),
        reasons,
        tuple(name for name in inflated if _POINTS.search(name)),
        tuple(strange),
        model.config.backbone.name,
    )


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


def _nothing_fits(file: WeightsFile, model: DefVIS) -> str:
    """What the file is, and with which settings it would fit."""
    settings = settings_that_fit(file, replace(Config(), model=model.config))
    if not settings:
        return unknown(file)
    return (
        f"no entry of {file.path} fits the model; it holds {describe(file)}, which needs "
        + " ".join(f"--set {setting!r}" for setting in settings)
    )


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
_POINTS = re.compile(r"\.deform\.(sampling_offsets|attention_weights)\.")


def _other_points(model: DefVIS, config: Config | None) -> str:
    """Says so if the file's model has as many points in all, but not in each level."""
    if config is None:
        return ""
    theirs, ours = config.model.points_per_level, model.config.points_per_level
    if theirs == ours or sum(theirs) != sum(ours):  # Of another number, shapes differ.
        return ""
    theirs_in_words, ours_in_words = (" + ".join(map(str, each)) for each in (theirs, ours))
    return f"of levels with {theirs_in_words} points, not {ours_in_words}"
