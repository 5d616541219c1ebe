"""The network: backbone, projection, encoder, decoder, mask head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defvis.config import ModelConfig
from defvis.models.attention import Volume
from defvis.models.backbone import Backbone
from defvis.models.decoder import Decoder
from defvis.models.encoder import Encoder
from defvis.models.heads import DenseClassHead, class_probabilities
from defvis.models.mask_head import DynamicMaskHead, MaskFeatures
from defvis.models.mask_inputs import FrameMaps, MaskInputs
from defvis.models.position_encoding import sine_position_3d
from defvis.models.queries import ReferenceBoxes, ReferencePoints
from defvis.models.seeds import CellMaps, SeedQueries, identity_embedding
from defvis.models.vistr_masks import FrameFeatures, SequenceMaskHead
from stdeform import MSDeformAttn, STDeformAttn, shapes


@dataclass(frozen=True)
class Outputs:
    """Predictions for a batch of clips.

    Attributes:
        class_logits: [R, B, I, T, num_classes] of the R decoder layers.
        boxes: [R, B, I, T, 4] in fractions of the unpadded frame.
        queries: Last layer, [B, I, T, C].
        mask_features: Inputs of the mask head, [B, T, ...] each.
        dense_logits: Class maps of backbone and encoder cells, [2, B, T, h, w, num_classes]; None
            from a model without them.
        frame_mask: bool [B, T], True on real frames.
        frame_ratios: Real share (x, y) of the padded frame, [B, 2].
        cell_padding: bool [B, T, h, w], True on padded cells; None if nothing is padded.
        class_output: The config's, which defines the meaning of the logits.
        identities: Embeddings of the encoder's cells, of length 1, [B, T, h, w, E]; None from a
            model whose queries are not seeds.
    """

    class_logits: Tensor
    boxes: Tensor
    queries: Tensor
    mask_features: tuple[Tensor, ...]
    dense_logits: Tensor | None
    frame_mask: Tensor
    frame_ratios: Tensor
    cell_padding: Tensor | None = None
    class_output: str = "sigmoid"
    identities: Tensor | None = None

    def class_probabilities(self) -> Tensor:
        """Of the last layer, [B, I, T, num_classes]."""
        return class_probabilities(self.class_logits[-1], self.class_output)


class DefVIS(nn.Module):
    """Deformable VisTR and its relatives, by the choices of the config."""

    # Frames that a clip must have, None as any number will do (see `evaluation.predict`).
    num_frames: int | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.config = config
        self.backbone = Backbone(config.backbone)
        laterals = self.backbone.channels[: -config.levels]
        channels = self.backbone.channels[-config.levels :]
        self.project = _projection(channels[0], config)
        if config.levels > 1:
            self.project_coarser = nn.ModuleList(_projection(n, config) for n in channels[1:])
            self.level_position = nn.Parameter(torch.randn(config.levels, width))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.mask_features: MaskFeatures | FrameFeatures
        self.mask_head: DynamicMaskHead | SequenceMaskHead
        if config.mask_head == "dynamic":
            self.mask_features = MaskFeatures(config, laterals)
            self.mask_head = DynamicMaskHead(config)
        else:
            self.mask_features = FrameFeatures(config, laterals)
            self.mask_head = SequenceMaskHead(config, len(laterals))
        self.backbone_classes: DenseClassHead | None = None
        self.memory_classes: DenseClassHead | None = None
        if config.dense_classes:
            self.backbone_classes = DenseClassHead(width, config.num_classes)
            self.memory_classes = DenseClassHead(width, config.num_classes)
        self.identity = nn.Linear(width, config.identity_dim) if config.queries == "seeds" else None

    def offset_parameters(self) -> Iterator[nn.Parameter]:
        """Weights that predict sampling locations: offsets and references.

        The paper trains them at a tenth of the learning rate.
        """
        for module in self.modules():
            if isinstance(module, (STDeformAttn, MSDeformAttn)):
                yield from module.sampling_offsets.parameters()
            elif isinstance(module, (ReferenceBoxes, ReferencePoints)):
                yield from module.parameters()
            elif isinstance(module, SeedQueries):
                yield from module.size.parameters()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def predict(
        self, frames: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a program reads that only predicts: all slots, of the last layer.

        Args:
            frames: As in `forward`.
            padding_mask: The same.

        Returns:
            Class probabilities [B, I, T, num_classes], boxes [B, I, T, 4] in fractions of the
            unpadded frame, and mask logits [B, I, T, h, w] of the padded one.
        """
        outputs = self(frames, padding_mask)
        slots = torch.arange(self.config.num_slots, device=frames.device)
        masks = self.predict_masks(outputs, slots.expand(frames.shape[0], -1))
        return outputs.class_probabilities(), outputs.boxes[-1], masks

    def forward(self, frames: Tensor, padding_mask: Tensor | None = None) -> Outputs:
        """Runs everything but the masks, which `predict_masks` computes for chosen slots.

        Args:
            frames: Normalised pixels, zero on padding, [B, T, 3, H, W].
            padding_mask: bool [B, T, H, W], True on padding; only whole frames at the end and
                bands at the right and the bottom may be padded. None if nothing is padded.
        """
        batch, num_frames = frames.shape[:2]
        pixels = _channels_last(frames.flatten(0, 1))
        maps = self.backbone(pixels)
        laterals, fed = maps[: -self.config.levels], maps[-self.config.levels :]
        levels = [
            project(level).unflatten(0, (batch, num_frames)).permute(0, 1, 3, 4, 2)
            for project, level in zip(self._projections(), fed, strict=True)
        ]  # [B, T, h, w, C] each
        paddings = [_resize_padding(padding_mask, x.shape[:4], x.device) for x in levels]
        cells, cell_padding = levels[0], paddings[0]
        volume = Volume(
            shapes=tuple((num_frames, *level.shape[2:4]) for level in levels),
            position=self._position(paddings).to(cells.dtype),
            padding_mask=None if padding_mask is None else _join(paddings),
            valid_ratios=torch.stack([shapes.valid_ratios(padding) for padding in paddings], 1),
            frame_mask=~cell_padding.flatten(2).all(-1),
        )
        memory = self.encoder(_join(levels), volume)
        memory_cells = memory[:, : math.prod(volume.shape)].view_as(cells)
        dense_logits = None
        if self.backbone_classes is not None and self.memory_classes is not None:
            dense_logits = torch.stack(
                (self.backbone_classes(cells), self.memory_classes(memory_cells))
            ).float()
        cell_maps = None
        if self.identity is not None and dense_logits is not None:
            objectness = dense_logits[0].sigmoid().amax(-1)
            cell_maps = CellMaps(identity_embedding(self.identity, memory_cells), objectness)
        class_logits, boxes, queries = self.decoder(memory, volume, cell_maps)
        memory_maps = memory_cells.flatten(0, 1).permute(0, 3, 1, 2)
        features = self.mask_features(FrameMaps(memory_maps, laterals, pixels))
        return Outputs(
            class_logits=class_logits,
            boxes=boxes,
            queries=queries,
            mask_features=tuple(x.unflatten(0, (batch, num_frames)) for x in features),
            dense_logits=dense_logits,
            frame_mask=volume.frame_mask,
            frame_ratios=volume.valid_ratios[:, 0, :2],
            cell_padding=None if padding_mask is None else cell_padding,
            class_output=self.config.class_output,
            identities=None if cell_maps is None else cell_maps.embedding,
        )

    def predict_masks(
        self, outputs: Outputs, slots: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Mask logits of the padded frames.

        Args:
            outputs: Result of `forward`.
            slots: int64 [B, J], the slots of each clip to predict.
            present: bool [B, J], False where `slots` is padding: its masks mean nothing, and
                VisTR's head does not compute them. None computes all.

        Returns:
            [B, J, T, h, w], at half the size of the frames (dynamic head) or at the size of the
            finest backbone map (VisTR's).
        """
        batch = torch.arange(slots.shape[0], device=slots.device)[:, None]
        # The boxes only place the coordinate frame: mask losses must not move them.
        boxes = outputs.boxes[-1].detach()[batch, slots]
        boxes = boxes * outputs.frame_ratios.repeat(1, 2)[:, None, None]
        inputs = MaskInputs(
            outputs.mask_features,
            outputs.queries[batch, slots],
            boxes,
            outputs.cell_padding,
            present,
        )
        masks: Tensor = self.mask_head(inputs)
        return masks.float()

    def classify_frames(self, frames: Tensor) -> Tensor:
        """Class logits of the backbone's cells alone: frames [N, 3, H, W] to [N, h, w, classes].

        Raises:
            RuntimeError: If the model has no dense class maps.
        """
        if self.backbone_classes is None:
            raise RuntimeError("classifying frames needs a model with dense_classes")
        cells = self.project(self.backbone(_channels_last(frames))[-self.config.levels])
        logits: Tensor = self.backbone_classes(cells.permute(0, 2, 3, 1))
        return logits.float()

    def _projections(self) -> list[nn.Module]:
        """To the encoder's channels, of the levels fine to coarse."""
        return [self.project, *(self.project_coarser if self.config.levels > 1 else ())]

    def _position(self, paddings: Sequence[Tensor]) -> Tensor:
        """Position encoding of the cells of all levels, [B, S, C]."""
        levels = [
            sine_position_3d(padding, self.config.embed_dim).flatten(2).transpose(1, 2)
            for padding in paddings
        ]
        if len(levels) > 1:
            levels = [x + own for x, own in zip(levels, self.level_position, strict=True)]
        return torch.cat(levels, dim=1)


def _projection(channels: int, config: ModelConfig) -> nn.Sequential:
    """From a map of the backbone to cells of the encoder."""
    project = nn.Sequential(nn.Conv2d(channels, config.embed_dim, 1))
    if config.project_groups:
        project.append(nn.GroupNorm(config.project_groups, config.embed_dim))
    return project


def _join(levels: Sequence[Tensor]) -> Tensor:
    """Cells [B, T, h, w, ...] of all levels, one after the other, [B, S, ...]."""
    return torch.cat([level.flatten(1, 3) for level in levels], dim=1)


def _channels_last(frames: Tensor) -> Tensor:
    """Frames [N, 3, H, W] in the layout that convolutions on a CPU are fastest in.

    Not where processes train together: their gradients would have another layout than the buckets
    that they are summed in.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if frames.device.type != "cpu" or together:
        return frames
    return frames.contiguous(memory_format=torch.channels_last)


def _resize_padding(
    padding_mask: Tensor | None, cells: Sequence[int], device: torch.device
) -> Tensor:
    """Padding of the feature cells, bool [B, T, h, w]; a cell is real if its nearest pixel is."""
    if padding_mask is None:
        return torch.zeros(tuple(cells), dtype=torch.bool, device=device)
    return F.interpolate(padding_mask.float(), size=tuple(cells[2:]), mode="nearest").bool()
