"""The sizes of a ResNet, read from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from defvis.config import BackboneConfig, ModelConfig
from defvis.config_rules import model_rules
from defvis.models.backbone import Backbone
from defvis.pretrained.conversion import body_name

_STEM = "embedder.embedder.convolution.weight"
_CONVOLUTION = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.convolution\.weight"
)
# By layer type and depths.
_NAMES: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "ResNet-18",
    ("basic", (3, 4, 6, 3)): "ResNet-34",
    ("bottleneck", (3, 4, 6, 3)): "ResNet-50",
    ("bottleneck", (3, 4, 23, 3)): "ResNet-101",
    ("bottleneck", (3, 8, 36, 3)): "ResNet-152",
}


def resnet_name(backbone: BackboneConfig) -> str:
    """What a backbone of these sizes is called: "ResNet-50", or "ResNet" if it has no number."""
    return _NAMES.get((backbone.layer_type, backbone.depths), "ResNet")


def resnet_sizes(entries: Mapping[str, Tensor], source: str) -> BackboneConfig | None:
    """The backbone whose weights a file has, with all its stages used.

    Args:
        entries: Tensors by name.
        source: Result of `recognise`.

    Returns:
        The sizes; None if the file has no ResNet.

    Raises:
        ValueError: If it has one of a kind that `BackboneConfig` does not describe.
    """
    body = {
        inside: tuple(value.shape)
        for name, value in entries.items()
        if (inside := body_name(name, source)) is not None
    }
    stages: dict[int, dict[tuple[int, int], tuple[int, ...]]] = {}
    for name, shape in body.items():
        if (found := _CONVOLUTION.fullmatch(name)) and len(shape) == 4:
            stage, layer, place = (int(number) for number in found.groups())
            stages.setdefault(stage, {})[layer, place] = shape
    if not stages:
        return None
    if len(body.get(_STEM, ())) != 4 or sorted(stages) != list(range(len(stages))):
        raise ValueError("its ResNet has another stem, or lacks a stage")
    bottleneck = (0, 2) in stages[0]
    last = 2 if bottleneck else 1
    if any((0, last) not in stage for stage in stages.values()):
        raise ValueError("its ResNet has residual layers of different kinds")
    sizes = BackboneConfig(
        layer_type="bottleneck" if bottleneck else "basic",
        embedding_size=body[_STEM][0],
        hidden_sizes=tuple(stages[number][0, last][0] for number in range(len(stages))),
        depths=tuple(1 + max(stages[number])[0] for number in range(len(stages))),
        out_features=tuple(f"stage{number + 1}" for number in range(len(stages))),
        frozen_norm=True,
        frozen_stages=1,
    )
    _compare(sizes, body)
    return sizes


def _compare(sizes: BackboneConfig, body: Mapping[str, tuple[int, ...]]) -> None:
    """Raises unless a model of these sizes has the file's entries; wide ones have others."""
    for agrees, rule in model_rules(ModelConfig(backbone=sizes)):
        if not agrees:
            raise ValueError(rule)
    with torch.device("meta"):
        own = Backbone(sizes).body.state_dict()
    for name, value in own.items():
        if body.get(name) != tuple(value.shape):
            have = f"has shape {list(body[name])}" if name in body else "is missing"
            raise ValueError(
                f"its ResNet is of another kind, such as wide or grouped: backbone.body.{name} "
                f"{have}, not {list(value.shape)}"
            )
