"""A config that fits a file of weights, where the user did not decide otherwise."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from defvis.config import Config
from defvis.config_io import flatten
from defvis.pretrained.sizes import sizes_of
from defvis.pretrained.weights_file import WeightsFile, read_weights


def fit_config(
    config: Config,
    weights: Path | WeightsFile,
    fixed: Collection[str] = (),
    short_side: int = 0,
) -> tuple[Config, list[str]]:
    """Changes the sizes of the model to those of a file of weights, so that most of it fits.

    A run gives all of its model but the classes, and the size of its frames, if it resized them; a
    ResNet gives the backbone; VisTR and Deformable DETR
    their backbone and transformer. The number of slots, and the mask head, stay as they are. With
    a trained backbone the backbone stage is left out: alone it would change what the rest of the
    model was trained with.

    Args:
        config: With what the user has set.
        weights: As in `read_weights`, or its result.
        fixed: Fields that stay, by path: "model.num_slots".
        short_side: Short side of the frames as the model sees them, in pixels; 0 takes
            `data.short_side`.

    Returns:
        The config, and what was changed, a line for each field.

    Raises:
        CheckpointError: If the file cannot be read.
        ValueError: If nothing in it is known, or it cannot be fitted to the fields that stay.
    """
    file = weights if isinstance(weights, WeightsFile) else read_weights(weights)
    try:
        sizes = sizes_of(file, config, fixed, short_side or config.data.short_side)
    except ValueError as error:
        raise ValueError(
            f"weights {file.path} cannot be fitted: {error}; known are ResNet-18, 34, 50, 101 and "
            "152 of torchvision, timm or transformers, and backbones like them"
        ) from error
    if not sizes and not config.model.backbone.name:
        raise ValueError(unknown(file))
    reasons = dict.fromkeys(sizes, "as the file's")
    if _has_trained_backbone(file, sizes):
        sizes["backbone_stage.steps"] = 0
        reasons["backbone_stage.steps"] = "as the file has a trained backbone"
    for name in ("frozen_norm", "frozen_stages"):
        if file.config is None and f"model.backbone.{name}" in sizes:
            reasons[f"model.backbone.{name}"] = "to keep what the file's backbone has learned"
    values = config.to_dict()
    before, notes = flatten(values), []
    for path, value in sizes.items():
        if path in fixed or before[path] == value:
            continue
        *parents, name = path.split(".")
        branch = values
        for parent in parents:
            branch = branch[parent]
        branch[name] = value
        notes.append(f"{path} = {json.dumps(value)}, {reasons[path]}")
    model = values["model"]
    if model["levels"] == 1 and "model.coarser_points" not in fixed:
        model["coarser_points"] = 0
    if file.source == "defvis" and file.config is None:
        for name in ("num_heads", *["coarser_points"] * (model["levels"] > 1)):
            if f"model.{name}" not in fixed and model[name] == before[f"model.{name}"]:
                notes.append(
                    f"model.{name} = {model[name]}, as the preset's: shapes do not tell the file's"
                )
    try:
        fitted = Config.from_dict(values)
        fitted.check()
    except ValueError as error:
        raise ValueError(
            f"weights {file.path} cannot be fitted to the fields that are set: {error}"
        ) from error
    return fitted, notes


def _has_trained_backbone(file: WeightsFile, sizes: dict[str, Any]) -> bool:
    """Whether the backbone stage has nothing to do any more."""
    if file.config is not None:
        return file.stage != "backbone"
    return any(path.startswith("model.backbone.") for path in sizes)


def settings_that_fit(file: WeightsFile, config: Config) -> list[str]:
    """The settings, as for `--set`, with which most of a file would fit a config's model."""
    try:
        sizes = sizes_of(file, config)
    except ValueError:
        return []
    before = flatten(config.to_dict())
    return [f"{path}={json.dumps(v)}" for path, v in sizes.items() if before[path] != v]


def unknown(file: WeightsFile) -> str:
    """What can be said of a file in which nothing is known."""
    first = next(iter(file.entries), None)
    holds = f"it has {first!r}" if first is not None else "it has no tensors"
    return (
        f"nothing in {file.path} fits a model of this program: {holds}; known are checkpoints of "
        "train_defvis, and the names of a ResNet of torchvision, timm or transformers, of VisTR, "
        "and of Deformable DETR as its authors released it"
    )
