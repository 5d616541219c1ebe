"""Names and shapes of other projects' weights in terms of this model's, entry by entry.

Known are the ResNets of torchvision and of transformers, VisTR (with DETR, from which it starts,
and the release of Deformable VisTR, which keeps its names) and Deformable DETR.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from defvis.models.attention import DeformableAttention, FramesAttention, first_offsets
from defvis.models.model import DefVIS
from defvis.models.queries import FreeQueries

Entries = dict[str, Tensor]

# Patterns of names below a torchvision ResNet and what they are below `backbone.body`.
_RESNET = (
    (r"conv1", "embedder.embedder.convolution"),
    (r"bn1", "embedder.embedder.normalization"),
    (r"layer(\d)\.(\d+)\.conv(\d)", r"encoder.stages.{-1}.layers.{2}.layer.{-3}.convolution"),
    (r"layer(\d)\.(\d+)\.bn(\d)", r"encoder.stages.{-1}.layers.{2}.layer.{-3}.normalization"),
    (r"layer(\d)\.(\d+)\.downsample\.0", r"encoder.stages.{-1}.layers.{2}.shortcut.convolution"),
    (r"layer(\d)\.(\d+)\.downsample\.1", r"encoder.stages.{-1}.layers.{2}.shortcut.normalization"),
)
_FEEDFORWARD = {"linear1": "feedforward.layers.0", "linear2": "feedforward.layers.3"}
# Both decoders run self-attention, cross-attention, feed-forward, but number their norms apart.
_NORMS = {
    "vistr": {"norm1": "self_norm", "norm2": "cross_norm", "norm3": "feedforward.norm"},
    "deformable-detr": {"norm2": "self_norm", "norm1": "cross_norm", "norm3": "feedforward.norm"},
}
# The mask branch of VisTR; lay1 and the keys need more than a name.
_MASKS = {
    "bbox_attention.q_linear": "mask_head.query",
    "bbox_attention.k_linear": "mask_features.keys",
    "mask_head.gn1": "mask_head.norms.0",
    "mask_head.gn5": "mask_head.deform_norm",
    "mask_head.conv_offset": "mask_head.deform.offsets",
    "mask_head.dcn": "mask_head.deform",
    "insmask_head.9": "mask_head.mask",
    **{f"mask_head.lay{i}": f"mask_head.convs.{i - 2}" for i in (2, 3, 4)},
    **{f"mask_head.gn{i}": f"mask_head.norms.{i - 1}" for i in (2, 3, 4)},
    **{f"mask_head.adapter{i}": f"mask_features.laterals.{i - 1}" for i in (1, 2, 3)},
    **{f"insmask_head.{3 * i}": f"mask_head.sequence_convs.{i}" for i in range(3)},
    **{f"insmask_head.{3 * i + 1}": f"mask_head.sequence_norms.{i}" for i in range(3)},
}


def recognise(state: Mapping[str, Tensor]) -> str:
    """Whose weights these are.

    "torchvision", "transformers", "vistr", "deformable-detr", or "defvis" for everything else.
    """
    if "layer1.0.conv1.weight" in state:
        return "torchvision"
    if any(f"{prefix}embedder.embedder.convolution.weight" in state for prefix in ("", "resnet.")):
        return "transformers"
    if "transformer.level_embed" in state or any("reference_points" in name for name in state):
        return "deformable-detr"
    if any(name.startswith("transformer.") for name in state):
        return "vistr"
    return "defvis"


@dataclass(frozen=True)
class Converter:
    """Translates the entries of one state dict for one model.

    Attributes:
        model: The model to fill.
        state: All entries, without the prefixes of wrappers.
        source: Result of `recognise`.
    """

    model: DefVIS
    state: Mapping[str, Tensor]
    source: str

    def convert(self, name: str) -> Entries:
        """What one entry becomes: none, one or more entries of the model, perhaps not fitting."""
        value = self.state[name]
        if self.source == "defvis":
            return {name: value}
        in_body = body_name(name, self.source)
        if in_body is not None:
            return {f"backbone.body.{in_body}": value}
        if self.source in ("torchvision", "transformers"):
            return {}
        stem, _, kind = name.rpartition(".")
        if stem in _MASKS:
            wide = stem == "bbox_attention.k_linear" and kind == "weight"
            return {f"{_MASKS[stem]}.{kind}": value[:, :, None, None] if wide else value}
        if stem == "mask_head.lay1":
            return self._first_mask_conv(kind, value)
        if stem.startswith("input_proj"):
            return self._projection(stem, kind, value)
        if stem.startswith(("class_embed", "bbox_embed")):
            return self._heads(stem, kind, value)
        if stem == "query_embed":
            return self._queries(value)
        if name == "transformer.level_embed" and self.model.config.levels > 1:
            return {"level_position": value[self._chosen(len(value))]}
        if stem == "transformer.reference_points":
            return {f"decoder.queries.points.project.{kind}": value}
        if stem == "transformer.decoder.norm":
            return {f"decoder.norm.{kind}": value}
        found = re.fullmatch(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
        return {} if found is None else self._layer(found[1], int(found[2]), found[3], value)

    def _layer(self, part: str, number: int, name: str, value: Tensor) -> Entries:
        """An entry of an encoder or decoder layer."""
        layer = f"{part}.layers.{number}"
        first, _, rest = name.partition(".")
        if first in _FEEDFORWARD:
            return {f"{layer}.{_FEEDFORWARD[first]}.{rest}": value}
        if first.startswith("norm"):
            norms = {"norm1": "norm", "norm2": "feedforward.norm"}
            if part == "decoder":
                norms = _NORMS[self.source]
            return {f"{layer}.{norms[first]}.{rest}": value} if first in norms else {}
        if part == "decoder" and first == "self_attn":
            return {f"{layer}.self_attention.{rest}": value}
        if first in ("self_attn", "multihead_attn", "cross_attn"):
            target = f"{layer}.{'attention' if part == 'encoder' else 'cross_attention'}"
            return self._attention(target, rest, value)
        return {}

    def _attention(self, target: str, name: str, value: Tensor) -> Entries:
        """An entry of an attention to the memory, whatever kind it is on either side."""
        try:
            module = self.model.get_submodule(target)
        except AttributeError:  # The file's model is deeper.
            return {}
        stem, _, kind = name.rpartition(".")
        dense = name.startswith(("in_proj", "out_proj"))
        if not isinstance(module, (DeformableAttention, FramesAttention)):
            return {f"{target}.attention.{name}": value} if dense else {}
        if dense:  # Value and output projection mean the same in both; queries and keys do not.
            if stem == "out_proj":
                return {f"{target}.deform.output_proj.{kind}": value}
            kind = name.removeprefix("in_proj_")
            return {f"{target}.deform.value_proj.{kind}": value[2 * (len(value) // 3) :]}
        if stem in ("sampling_offsets", "attention_weights"):
            value = self._samples(module, stem, kind, value)
        return {f"{target}.deform.{name}": value}

    def _samples(
        self, module: DeformableAttention | FramesAttention, stem: str, kind: str, value: Tensor
    ) -> Tensor:
        """Fits the points of 2-D attention to those of a layer of this model.

        From several levels of an image those of this model's strides are taken. Their points serve
        all frames: in a volume they keep (x, y) and take the layer's own spread over t, so
        every moment of the pattern sees what the image model saw.

        Args:
            module: The attention to fill.
            stem: "sampling_offsets" or "attention_weights".
            kind: "weight" or "bias".
            value: Rows (head, level, point, axis) of offsets, (head, level, point) of weights.
        """
        layer = module.deform
        heads = layer.num_heads
        axes = 2 if stem == "sampling_offsets" else 1
        levels = self._levels()
        frames = isinstance(module, FramesAttention)
        if frames and self.source == "vistr":  # Frames are levels there too, and one more.
            levels = len(value) // (heads * layer.num_points * axes)
        if not levels or len(value) % (heads * levels * axes):
            return value
        grid: Tensor = value.unflatten(0, (heads, levels, -1, axes))  # [M, L, P, axes, ...]
        if frames and self.source == "vistr":
            return grid[:, : layer.num_levels].flatten(0, 3)
        grid = grid[:, self._chosen(levels)]  # [M, 1 or L, P, axes, ...]
        if frames:
            grid = grid[:, :, torch.arange(layer.num_points) % grid.shape[2]]
            return grid.expand(-1, layer.num_levels, *grid.shape[2:]).flatten(0, 3)
        inflated = []
        for level, points in zip(grid.unbind(1), layer.num_points, strict=True):
            own = first_offsets(layer, points)  # [M, K, 3]
            turn = len(own[0, :, 2].unique())
            rows = level[:, torch.arange(points) // turn % level.shape[1]]  # [M, K, axes, ...]
            if stem == "sampling_offsets":
                t = torch.zeros_like(rows[:, :, :1])
                if kind == "bias":
                    t = own[..., 2:].to(rows.dtype)
                rows = torch.cat((rows, t), dim=2)
            elif kind == "bias":  # A level keeps its share of the attention, however many points.
                rows = rows + math.log(layer.num_points[0] / points)
            inflated.append(rows)
        return torch.cat(inflated, dim=1).flatten(0, 2)

    def _levels(self) -> int:
        """Feature levels of the file's model."""
        return len({name.split(".")[1] for name in self.state if _LEVEL.fullmatch(name)}) or 1

    def _chosen(self, count: int) -> list[int]:
        """The file's level for each of this model's, of `count`: that of the same backbone map.

        Where there is none, it is the one after that of the level before, or the first.
        """
        chosen: list[int] = []
        for channels in self._fed():
            made = [n for n, width in self._projected().items() if width == channels]
            chosen.append(made[0] if made else min(chosen[-1] + 1 if chosen else 0, count - 1))
        return chosen

    def _fed(self) -> tuple[int, ...]:
        """Channels of the backbone maps that feed this model's levels."""
        return self.model.backbone.channels[-self.model.config.levels :]

    def _projected(self) -> dict[int, int]:
        """Channels of the backbone map that each level of the file is made from by 1 x 1."""
        found = ((_LEVEL.fullmatch(name), value) for name, value in self.state.items())
        return {
            int(each[1] or 0): value.shape[1]
            for each, value in found
            if each and value.shape[2:] == (1, 1)
        }

    def _projection(self, stem: str, kind: str, value: Tensor) -> Entries:
        parts = stem.split(".")  # input_proj, or input_proj.level.{0: convolution, 1: norm}
        one = len(parts) == 1
        channels = self._projected().get(0 if one else int(parts[1]))
        if not one and channels not in self._fed():
            return {}
        number = self._fed().index(channels) if channels in self._fed() else 0
        target = f"project_coarser.{number - 1}" if number else "project"
        return {f"{target}.{'0' if one else parts[2]}.{kind}": value}

    def _heads(self, stem: str, kind: str, value: Tensor) -> Entries:
        """Class and box heads, shared by all layers or one for each on either side."""
        numbers = re.match(r"(class|bbox)_embed(?:\.(\d+)(?=$|\.layers))?(?:\.layers\.(\d))?", stem)
        assert numbers is not None
        if numbers[1] == "class":
            heads, name = "class_heads", "frame"
            if len(value) == self.model.config.num_classes + 2 and self.source == "vistr":
                value = value[1:]  # VisTR counts classes from 1 and never uses 0.
        else:
            heads, name = "box_heads", ("delta.0.0", "delta.0.2", "delta.2")[int(numbers[3])]
        count = len(self.model.decoder.class_heads)
        if numbers[2] is None:
            layers = list(range(count))
        elif count == 1:
            last = self.model.config.decoder_layers - 1
            layers = [0] if int(numbers[2]) == last else []
        else:
            layers = [int(numbers[2])]
        return {f"decoder.{heads}.{layer}.{name}.{kind}": value for layer in layers}

    def _queries(self, value: Tensor) -> Entries:
        """VisTR's queries, frame by frame; those of an image model have no frames."""
        queries = self.model.decoder.queries
        if not isinstance(queries, FreeQueries):
            return {}
        slots, frames, width = queries.table.shape
        if value.shape == (slots * frames, width):
            value = value.unflatten(0, (frames, slots)).transpose(0, 1)
        return {"decoder.queries.table": value}

    def _first_mask_conv(self, kind: str, value: Tensor) -> Entries:
        """Its input is memory, then attention maps; here these are two convolutions, one bias."""
        if kind == "bias":
            return {"mask_features.memory.bias": value}
        width = self.model.config.embed_dim
        return {
            "mask_features.memory.weight": value[:, :width],
            "mask_head.maps.weight": value[:, width:],
        }


_LEVEL = re.compile(r"input_proj(?:\.(\d+)\.0)?\.weight")


def body_name(name: str, source: str) -> str | None:
    """What an entry of a file is called in the ResNet `backbone.body`; None if it is not of one.

    Args:
        name: In the file.
        source: Result of `recognise`.
    """
    if source == "defvis":
        return name.removeprefix("backbone.body.") if name.startswith("backbone.body.") else None
    if source == "transformers":
        bare = name.removeprefix("resnet.")
        return bare if bare.startswith(("embedder.", "encoder.")) else None
    if source != "torchvision":
        if not name.startswith("backbone.0.body."):
            return None
        name = name.removeprefix("backbone.0.body.")
    stem, _, kind = name.rpartition(".")
    for pattern, target in _RESNET:
        found = re.fullmatch(pattern, stem)
        if found is not None:
            numbers = found.groups()
            # {2}: the second number as it is; {-1}: the first number, which here counts from 0.
            named = re.sub(
                r"\{(-?)(\d)\}",
                lambda m: str(int(numbers[int(m[2]) - 1]) - bool(m[1])),  # noqa: B023
                target,
            )
            return f"{named}.{kind}"
    return None
