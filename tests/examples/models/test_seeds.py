"""Queries that start at objects: which cells are chosen, and where the likeness is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from defvis.config import Config, ModelConfig
from defvis.models.decoder import Decoder
from defvis.models.model import DefVIS
from defvis.models.seeds import CellMaps, SeedQueries, _pick, _share
from tests.examples.support import changed, volume

T, H, W, C, E = 3, 4, 6, 24, 8
# Row and column of two objects in each frame: they cross.
PATHS = (((1, 0), (1, 2), (1, 5)), ((2, 5), (2, 3), (2, 0)))


@pytest.fixture
def model(config: Config) -> ModelConfig:
    return replace(config.model, num_slots=2, identity_dim=E)


@pytest.fixture
def maps() -> CellMaps:
    """The objects' embeddings are at right angles to each other and to the background's."""
    directions = torch.eye(E)
    embedding = directions[0].repeat(1, T, H, W, 1)
    objectness = torch.full((1, T, H, W), 0.01)
    for number, path in enumerate(PATHS):
        for frame, (row, column) in enumerate(path):
            embedding[0, frame, row, column] = directions[1 + number]
            objectness[0, frame, row, column] = 0.9 - 0.1 * number - 0.01 * frame
    return CellMaps(embedding, objectness)


@pytest.mark.parametrize("training", [True, False])
def test_a_slot_starts_where_its_object_is_in_every_frame(
    model: ModelConfig, maps: CellMaps, training: bool
) -> None:
    queries = SeedQueries(model).train(training)
    memory = torch.randn(1, T * H * W, C)
    content, fixed, boxes = queries(volume((T, H, W), C), memory, maps)
    assert content.shape == fixed.shape == (1, 2, T, C)
    torch.testing.assert_close(fixed[0, 1], queries.time(torch.ones(1, T, dtype=torch.bool))[0])
    for number, path in enumerate(PATHS):
        for frame, (row, column) in enumerate(path):
            centre = ((column + 0.5) / W, (row + 0.5) / H)
            # The softmax leaves e^-10 for each other cell.
            assert boxes[0, number, frame, :2].tolist() == pytest.approx(centre, abs=1e-3)
        first = memory[0].unflatten(0, (T, H, W))[0][path[0]]
        here = memory[0].unflatten(0, (T, H, W))[1][path[1]]
        expected = queries.seed_content(first) + queries.frame_content(here)
        # The same remainder of the softmax.
        torch.testing.assert_close(content[0, number, 1], expected, atol=1e-3, rtol=0)
    assert boxes[..., 2:].flatten(0, 2).unique(dim=0).flatten().tolist() == pytest.approx(
        model.initial_box
    )


def test_slots_beyond_the_objects_take_other_cells(model: ModelConfig, maps: CellMaps) -> None:
    """A third slot takes the background and not an object twice."""
    queries = SeedQueries(replace(model, num_slots=3)).eval()
    boxes = queries(volume((T, H, W), C), torch.randn(1, T * H * W, C), maps)[2]
    background = (maps.objectness[0] < 0.1).unflatten(1, (1, H))[:, 0].float()
    y, x = torch.meshgrid((torch.arange(H) + 0.5) / H, (torch.arange(W) + 0.5) / W, indexing="ij")
    for frame in range(T):
        share = background[frame] / background[frame].sum()
        centre = [(share * x).sum().item(), (share * y).sum().item()]
        assert boxes[0, 2, frame, :2].tolist() == pytest.approx(centre, abs=0.01)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("slots", [10, T * H * W])
def test_no_cell_is_taken_twice(
    model: ModelConfig, maps: CellMaps, slots: int, training: bool
) -> None:
    """Not even if all cells look alike, or none shows an object; equal slots would stay equal."""
    queries = SeedQueries(replace(model, num_slots=slots)).train(training)
    memory = torch.randn(1, T * H * W, C)
    same = torch.eye(E)[0].expand_as(maps.embedding)
    for clues in (
        maps,
        CellMaps(same, maps.objectness),
        CellMaps(same, torch.zeros_like(maps.objectness)),
    ):
        content, _, _ = queries(volume((T, H, W), C), memory, clues)
        assert len(content[0, :, 0].unique(dim=0)) == slots


def test_objects_of_one_kind_are_two(model: ModelConfig, maps: CellMaps) -> None:
    """A cosine of .7 is no reason to take the background instead of the second object."""
    alike = torch.tensor([0.0, 0.7, 0.51**0.5] + [0.0] * (E - 3))
    for frame, (row, column) in enumerate(PATHS[1]):
        maps.embedding[0, frame, row, column] = alike
    index = _pick(maps.embedding.flatten(1, 3), maps.objectness.flatten(1).log(), 2)
    expected = [row * W + column for row, column in (PATHS[0][0], PATHS[1][0])]
    assert index[0].tolist() == expected


def test_of_two_alike_each_slot_keeps_its_own(model: ModelConfig, maps: CellMaps) -> None:
    """At a cosine of .7 alone, a twentieth of the weight would lie on the other object."""
    for frame, (row, column) in enumerate(PATHS[1]):
        maps.embedding[0, frame, row, column, 1:3] = torch.tensor([0.7, 0.51**0.5])
    boxes = SeedQueries(model).eval()(volume((T, H, W), C), torch.randn(1, T * H * W, C), maps)[2]
    for number, path in enumerate(PATHS):
        for frame, (row, column) in enumerate(path):
            centre = ((column + 0.5) / W, (row + 0.5) / H)
            assert boxes[0, number, frame, :2].tolist() == pytest.approx(centre, abs=0.01)


def test_a_slot_learns_how_its_object_turns(model: ModelConfig) -> None:
    """The third view has a cosine of .34 to the seed, and of .82 to the mean of all three."""
    angles = torch.tensor([0, 35, 70]).deg2rad()
    embedding = torch.zeros(1, 20, E)
    embedding[0, :3, :2] = torch.stack((angles.cos(), angles.sin()), 1)
    embedding[0, 3:, 2] = 1
    prior = torch.tensor([0.9] * 3 + [0.01] * 17).log()[None]
    found = _share(embedding[:, :1], embedding, prior)[0, 0]
    assert (found[:3] > 7.5).all()
    assert (found[3:] < -4).all()


def test_what_is_like_no_slot_is_left_out(model: ModelConfig, maps: CellMaps) -> None:
    """With fewer slots than objects, a slot does not become the mean of several."""
    boxes = SeedQueries(replace(model, num_slots=1)).eval()(
        volume((T, H, W), C), torch.randn(1, T * H * W, C), maps
    )[2]
    for frame, (row, column) in enumerate(PATHS[0]):
        centre = ((column + 0.5) / W, (row + 0.5) / H)
        assert boxes[0, 0, frame, :2].tolist() == pytest.approx(centre, abs=1e-3)


def test_padding_of_several_levels(model: ModelConfig, maps: CellMaps) -> None:
    """Seeds are cells of the finest level: what belongs to others is passed over."""
    torch.manual_seed(0)
    padding = torch.zeros(1, T, H, W, dtype=torch.bool)
    padding[..., 5:] = True
    fine, coarse = volume((T, H, W), C, padding), volume((T, 2, 3), C, padding[:, :, ::2, ::2])
    both = replace(
        fine,
        shapes=(*fine.shapes, *coarse.shapes),
        padding_mask=torch.cat((fine.padding_mask, ~coarse.padding_mask), 1),
        valid_ratios=torch.cat((fine.valid_ratios, 0.5 * coarse.valid_ratios), 1),
    )
    queries, memory = SeedQueries(model).eval(), torch.randn(1, T * H * W + T * 6, C)
    alone = queries(fine, memory[:, : T * H * W], maps)
    for one, other in zip(queries(both, memory, maps), alone, strict=True):
        assert one.equal(other)


def test_rounding_chooses_no_seed(model: ModelConfig, maps: CellMaps) -> None:
    """Cells that differ by rounding alone, as on another machine, are taken in their order."""
    queries = SeedQueries(replace(model, num_slots=10)).eval()
    memory = torch.randn(1, T * H * W, C)
    content = []
    for seed in range(5):
        noise = 1e-6 * torch.rand((2, *maps.objectness.shape), generator=torch.manual_seed(seed))
        noisy = CellMaps(maps.embedding * (1 + noise[0, ..., None]), maps.objectness + noise[1])
        content.append(queries(volume((T, H, W), C), memory, noisy)[0])
    for other in content[1:]:  # Noise of 1e-6 is 1e-4 in the logarithm of .01; another cell is 1.
        torch.testing.assert_close(other, content[0], atol=1e-3, rtol=0)


def test_what_looks_alike_must_be_an_object(model: ModelConfig, maps: CellMaps) -> None:
    """Background with the embedding of an object counts by its objectness, .01 to .89."""
    maps.embedding[0, 1, 3, 5] = maps.embedding[0, 1, 1, 2]
    boxes = SeedQueries(model).eval()(volume((T, H, W), C), torch.randn(1, T * H * W, C), maps)[2]
    assert boxes[0, 0, 1, :2].tolist() == pytest.approx((2.5 / W, 1.5 / H), abs=0.01)


def test_padding_is_no_object(model: ModelConfig, maps: CellMaps) -> None:
    """Queries are those of the real part alone, whatever the padded cells hold."""
    torch.manual_seed(0)
    decoder = Decoder(model).eval()
    memory = torch.randn(1, T, H, W, C)
    alone = decoder(memory.flatten(1, 3), volume((T, H, W), C), maps)

    def padded(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        whole = value.expand(1, T + 2, H + 1, W + 2, *value.shape[4:]).clone()
        whole[:, :T, :H, :W] = x
        return whole

    padding = padded(torch.tensor(False), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    junk = CellMaps(
        padded(maps.embedding, torch.eye(E)[1].expand(1, 1, 1, 1, E)),
        padded(maps.objectness, torch.ones(1, 1, 1, 1)),
    )
    cells = padded(memory, torch.randn(1, T + 2, H + 1, W + 2, C))
    where = volume((T + 2, H + 1, W + 2), C, padding)
    _, _, boxes = decoder.queries(where, cells.flatten(1, 3), junk)
    _, _, expected = decoder.queries(volume((T, H, W), C), memory.flatten(1, 3), maps)
    # Float32: fractions of the padded frame, divided by its real share.
    torch.testing.assert_close(boxes[:, :, :T], expected, atol=1e-5, rtol=1e-5)
    assert boxes.isfinite().all()
    found = decoder(cells.flatten(1, 3), where, junk)
    # Samples beyond the edge fade into padding as they fade into nothing.
    for first, second in zip(found, alone, strict=True):
        axis = 3 if first.dim() == 5 else 2
        torch.testing.assert_close(first.narrow(axis, 0, T), second, atol=1e-4, rtol=1e-3)


def test_the_whole_model_learns_its_embedding(config: Config) -> None:
    """The embeddings have length 1, and the start of the boxes moves them."""
    torch.manual_seed(0)
    model = DefVIS(config.model)
    outputs = model(torch.randn(2, 4, 3, 32, 32))
    assert outputs.identities.shape == (2, 4, 4, 4, 32)
    torch.testing.assert_close(outputs.identities.norm(dim=-1), torch.ones(2, 4, 4, 4))
    outputs.boxes.sum().backward()
    assert model.identity.weight.grad.any()
    assert model.decoder.queries.size.weight.grad.any()


def test_clips_are_independent(config: Config) -> None:
    model = DefVIS(config.model).eval()
    frames = torch.randn(2, 4, 3, 32, 32)
    other = frames.clone()
    other[1] = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(other).boxes[:, 0], model(frames).boxes[:, 0])


def test_seeds_need_class_maps(config: Config) -> None:
    rule = 'model.queries "seeds" needs model.dense_classes'
    wrong = changed(config, "model.dense_classes=false", "backbone_stage.steps=0")
    with pytest.raises(ValueError, match=rule):
        wrong.check()
