"""The network: shapes, independence of padding and batch, layout of slots and frames."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from defvis.config import BackboneConfig, Config, ModelConfig
from defvis.models.backbone import Backbone, FrozenBatchNorm2d
from defvis.models.decoder import _in_volume
from defvis.models.heads import class_probabilities
from defvis.models.mask_head import DynamicMaskHead
from defvis.models.mask_inputs import MaskInputs
from defvis.models.model import DefVIS
from tests.examples.support import changed, volume


def test_shapes(config: Config) -> None:
    model = DefVIS(config.model)
    outputs = model(torch.randn(2, 4, 3, 33, 46))
    assert outputs.class_logits.shape == (2, 2, 3, 4, 3)
    assert outputs.boxes.shape == (2, 2, 3, 4, 4)
    assert outputs.queries.shape == (2, 3, 4, 24)
    assert [x.shape for x in outputs.mask_features] == [(2, 4, 8, 17, 23)]
    assert outputs.dense_logits.shape == (2, 2, 4, 5, 6, 3)
    assert model.predict_masks(outputs, torch.tensor([[0, 2], [1, 1]])).shape == (2, 2, 4, 17, 23)
    assert model.predict_masks(outputs, torch.zeros(2, 0, dtype=torch.int64)).shape[1] == 0
    assert model.classify_frames(torch.randn(5, 3, 32, 32)).shape == (5, 4, 4, 3)


def test_any_backbone_stages(config: Config) -> None:
    backbone = BackboneConfig(
        layer_type="bottleneck",
        embedding_size=8,
        hidden_sizes=(8, 16, 16),
        depths=(1, 1, 1),
        out_features=("stage1", "stage2", "stage3"),
    )
    model = DefVIS(dataclasses.replace(config.model, backbone=backbone))
    outputs = model(torch.randn(1, 2, 3, 64, 64))
    assert outputs.dense_logits.shape[3:5] == (4, 4)
    assert outputs.mask_features[0].shape[-2:] == (32, 32)


@pytest.fixture(
    params=[(1, 0), (2, 0), (2, 3)], ids=["one level", "two levels", "two, with 5 and 3 points"]
)
def levels(request: pytest.FixtureRequest, config: Config) -> ModelConfig:
    """Models that feed one stage to the encoder, or two."""
    num_levels, points = request.param
    backbone = BackboneConfig(
        embedding_size=8,
        hidden_sizes=(8, 16, 24),
        depths=(1, 1, 1),
        out_features=("stage1", "stage2", "stage3")[: 1 + num_levels],
    )
    return dataclasses.replace(
        config.model, backbone=backbone, levels=num_levels, coarser_points=points
    )


def test_the_finest_level_is_what_is_read(levels: ModelConfig) -> None:
    """Class maps, masks and seeds are of the same cells, however many levels there are."""
    model = DefVIS(levels)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    outputs = model(torch.randn(1, 2, 3, 48, 70))
    ((memory, volume),) = seen
    assert volume.shapes == ((2, 6, 9), (2, 3, 5))[: levels.levels]
    cells = sum(math.prod(shape) for shape in volume.shapes)
    assert memory.shape == volume.position.shape == (1, cells, 24)
    assert outputs.dense_logits.shape[2:5] == outputs.identities.shape[1:4] == (2, 6, 9)
    assert outputs.mask_features[0].shape[-2:] == (24, 35)


def test_levels_of_a_padded_frame(levels: ModelConfig) -> None:
    """Real shares differ by level; predictions are fractions of the real part of the finest."""
    model = DefVIS(levels).eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    padding = torch.zeros(1, 2, 48, 80, dtype=torch.bool)
    padding[..., 40:] = True
    outputs = model(torch.randn(1, 2, 3, 48, 80).masked_fill(padding[:, :, None], 0), padding)
    (where,) = seen
    # Of 10 and of 5 cells; a cell is real if its nearest pixel is.
    assert (
        where.valid_ratios[0].tolist() == [[0.5, 1, 1], [pytest.approx(0.6), 1, 1]][: levels.levels]
    )
    assert outputs.frame_ratios.tolist() == [[0.5, 1]]


def test_positions_of_levels_differ(levels: ModelConfig) -> None:
    """Where cells of two levels have one centre, a learned vector tells them apart."""
    model = DefVIS(levels)
    masks = [torch.zeros(1, 2, 1, 1, dtype=torch.bool)] * levels.levels
    position = model._position(masks)
    assert position.shape == (1, 2 * levels.levels, 24)
    if levels.levels == 2:
        learned = model.level_position
        torch.testing.assert_close(
            position[:, 2:] - position[:, :2], (learned[1] - learned[0]).expand(1, 2, -1)
        )


def test_references_of_levels() -> None:
    """A box is at the same place of each level's real part, whatever share that is."""
    ratios = torch.tensor([[[0.5, 0.8, 1.0], [0.6, 1.0, 1.0]]])
    where = dataclasses.replace(volume((2, 4, 6), 24), valid_ratios=ratios)
    box = torch.tensor([0.5, 0.25, 0.4, 0.2]).expand(1, 3, 2, 4)
    found = _in_volume(box, where)
    assert found.shape == (1, 3, 2, 2, 5)
    torch.testing.assert_close(found[0, 1, 1, 0], torch.tensor([0.25, 0.2, 0.75, 0.2, 0.16]))
    torch.testing.assert_close(found[0, 2, 0, 1], torch.tensor([0.3, 0.25, 0.25, 0.24, 0.2]))
    points = _in_volume(box[..., :2], where)
    torch.testing.assert_close(points, found[..., :3])


def test_levels_that_do_not_fit(config: Config) -> None:
    with pytest.raises(ValueError, match=r"levels must be at most the 2 stages of .*, got 3"):
        changed(config, "model.levels=3").check()
    with pytest.raises(ValueError, match='levels must be 1 with attention "frames", got 2'):
        changed(config, "model.levels=2", "model.decoder_attention=frames").check()
    with pytest.raises(ValueError, match="levels must be 1 without encoder layers, got 2"):
        changed(config, "model.levels=2", "model.encoder_layers=0").check()
    with pytest.raises(ValueError, match=r"coarser_points must be 0 with model\.levels = 1, got 4"):
        changed(config, "model.coarser_points=4").check()


def test_clips_of_a_batch_are_independent(levels: ModelConfig) -> None:
    model = DefVIS(levels).eval()
    frames = torch.randn(2, 4, 3, 32, 32)
    together = model(frames)
    slots = torch.arange(3).expand(2, -1)
    masks = model.predict_masks(together, slots)
    for row in range(2):
        alone = model(frames[row : row + 1])
        torch.testing.assert_close(together.boxes[:, row], alone.boxes[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            masks[row], model.predict_masks(alone, slots[:1])[0], atol=1e-4, rtol=1e-4
        )
    other = frames.clone()
    other[1] = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(other).boxes[:, 0], together.boxes[:, 0])


def test_padding_does_not_reach_the_decoder(config: Config) -> None:
    """The real part decodes to the same, whatever padded frames and columns hold.

    With learned slots; `test_seeds` has the same for queries that start at objects.
    """
    model = DefVIS(dataclasses.replace(config.model, queries="slots")).eval()
    cells = torch.randn(1, 6, 4, 6, 24)
    padding = torch.zeros(1, 6, 4, 6, dtype=torch.bool)
    padding[:, 4:] = True
    padding[..., 4:] = True
    other = torch.where(padding[..., None], torch.randn_like(cells), cells)
    padded = volume((6, 4, 6), 24, padding)
    results = [model.decoder(memory.flatten(1, 3), padded) for memory in (cells, other)]
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)
    # And the same as the real part alone; its queries are at the same fractions of it.
    alone = model.decoder(cells[:, :4, :, :4].flatten(1, 3), volume((4, 4, 4), 24))
    for first, second in zip(results[0], alone, strict=True):
        axis = 3 if first.dim() == 5 else 2
        # Samples beyond the edge fade into padding as they fade into nothing.
        torch.testing.assert_close(first.narrow(axis, 0, 4), second, atol=1e-4, rtol=1e-3)


def test_whole_model_with_padding_in_time_and_space(levels: ModelConfig) -> None:
    """Padded in time only, the backbone sees the same frames, so predictions must agree."""
    model = DefVIS(levels).eval()
    frames = torch.randn(1, 3, 3, 32, 32)
    padded = torch.cat((frames, torch.zeros(1, 2, 3, 32, 32)), dim=1)
    padding = torch.zeros(1, 5, 32, 32, dtype=torch.bool)
    padding[:, 3:] = True
    alone, long = model(frames), model(padded, padding)
    assert long.frame_mask.tolist() == [[True, True, True, False, False]]
    torch.testing.assert_close(long.boxes[:, :, :, :3], alone.boxes, atol=1e-4, rtol=1e-3)
    classes = long.class_logits[:, :, :, :3]
    torch.testing.assert_close(classes, alone.class_logits, atol=1e-4, rtol=1e-3)
    slots = torch.arange(3)[None]
    masks = model.predict_masks(long, slots)[:, :, :3]
    torch.testing.assert_close(masks, model.predict_masks(alone, slots), atol=1e-3, rtol=1e-3)


def test_first_boxes_are_the_references(config: Config) -> None:
    """Box heads start at zero, so an untrained decoder returns its reference boxes."""
    model = DefVIS(dataclasses.replace(config.model, queries="slots")).eval()
    boxes = model(torch.randn(2, 4, 3, 32, 32)).boxes
    expected = model.decoder.queries.references()[None, None, :, None].expand_as(boxes)
    torch.testing.assert_close(boxes, expected, atol=1e-4, rtol=0)


def test_dynamic_mask_head_against_a_plain_loop(config: Config) -> None:
    head = DynamicMaskHead(config.model)
    features, queries = torch.randn(1, 2, 8, 5, 7), torch.randn(1, 3, 2, 24)
    boxes = torch.rand(1, 3, 2, 4) * 0.5 + 0.2
    masks = head(MaskInputs((features,), queries, boxes))
    hidden = config.model.mask_hidden
    for slot in range(3):
        for frame in range(2):
            w1, b1, w2, b2, w3, b3 = head.controller(queries[0, slot, frame]).split(head.sizes)
            cx, cy, w, h = boxes[0, slot, frame]
            for row, column in ((0, 0), (4, 6), (2, 3)):
                x = torch.stack((((column + 0.5) / 7 - cx) / w, ((row + 0.5) / 5 - cy) / h))
                z = torch.cat((features[0, frame, :, row, column], x))
                z = F.relu(w1.view(hidden, -1) @ z + b1)
                z = F.relu(w2.view(hidden, hidden) @ z + b2)
                torch.testing.assert_close(
                    masks[0, slot, frame, row, column], w3 @ z + b3[0], atol=1e-4, rtol=1e-4
                )


def test_backbone_from_a_folder_of_weights(config: Config, tmp_path: Path) -> None:
    small = Backbone(config.model.backbone)
    small.body.save_pretrained(tmp_path)
    loaded = Backbone(BackboneConfig(name=str(tmp_path), out_features=("stage2",)))
    frames = torch.randn(2, 3, 32, 32)
    (coarse,) = loaded.eval()(frames)
    torch.testing.assert_close(coarse, small.eval()(frames)[-1])
    assert loaded.channels == (16,)


def test_frozen_batch_norm_is_batch_norm_in_eval_mode() -> None:
    norm = torch.nn.BatchNorm2d(5)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 2)
    frozen, x = FrozenBatchNorm2d(norm).train(), torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert not list(frozen.parameters())
    assert frozen.state_dict().keys() == norm.state_dict().keys() - {"num_batches_tracked"}


def test_frozen_parts_of_the_backbone(config: Config) -> None:
    settings = dataclasses.replace(config.model.backbone, frozen_norm=True, frozen_stages=1)
    backbone = Backbone(settings).train()
    assert not [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == ("stages.1" in name), name
    with pytest.raises(ValueError, match=r"frozen_stages must be .* got 3 for ResNet"):
        Backbone(dataclasses.replace(settings, frozen_stages=3))


def test_probabilities(config: Config) -> None:
    logits = torch.randn(2, 3, 4)
    assert class_probabilities(logits, "sigmoid").equal(logits.sigmoid())
    shared = class_probabilities(logits, "softmax")
    assert shared.shape == (2, 3, 3)
    torch.testing.assert_close(shared, logits.exp()[..., :3] / logits.exp().sum(-1, keepdim=True))
    model = DefVIS(dataclasses.replace(config.model, class_output="softmax")).eval()
    outputs = model(torch.randn(1, 2, 3, 32, 32))
    assert outputs.class_logits.shape[-1] == 4
    assert outputs.class_probabilities().shape == (1, 3, 2, 3)


def test_model_without_class_maps(config: Config) -> None:
    model = DefVIS(dataclasses.replace(config.model, dense_classes=False, queries="slots"))
    assert model(torch.randn(1, 2, 3, 32, 32)).dense_logits is None
    with pytest.raises(RuntimeError, match="needs a model with dense_classes"):
        model.classify_frames(torch.randn(1, 3, 32, 32))


def test_half_precision(config: Config) -> None:
    """Under autocast the predictions stay float32 and near those without it."""
    model = DefVIS(config.model).eval()
    frames = torch.randn(1, 4, 3, 32, 32)
    exact = model(frames)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(frames)
        masks = model.predict_masks(outputs, torch.arange(3)[None])
    for tensor in (outputs.class_logits, outputs.boxes, outputs.dense_logits, masks):
        assert tensor is not None
        assert tensor.dtype == torch.float32
    torch.testing.assert_close(outputs.boxes, exact.boxes, atol=0.02, rtol=0)
    torch.testing.assert_close(outputs.class_logits, exact.class_logits, atol=0.2, rtol=0)
