"""Queries that start at objects: which cells are chosen, and where the likeness is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from defvis.config import Config, ModelConfig
from defvis.models.decoder import Decoder
from defvis.models.model import DefVIS
from defvis.models.seeds import CellMaps, SeedQueries, _in_frames, _likeness, _pick, _share
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


@pytest.mark.parametrize("slots", [10, T * H * W])
def test_no_cell_is_taken_twice(maps: CellMaps, slots: int) -> None:
    """Not even if all cells look alike, or none shows an object; equal slots would stay equal."""
    prior, same = maps.objectness.flatten(1).log(), torch.eye(E)[0].expand(1, T * H * W, E)
    for embedding, objects in (
        (maps.embedding.flatten(1, 3), prior),
        (same, prior),
        (same, torch.full_like(prior, -7.0)),
    ):
        assert len(_pick(embedding, objects, slots)[0].unique()) == slots


def test_objects_of_one_kind_are_two(model: ModelConfig, maps: CellMaps) -> None:
    """A cosine of .7 is no reason to take the background instead of the second object."""
    alike = torch.tensor([0.0, 0.7, 0.51**0.5] + [0.0] * (E - 3))
    for frame, (row, column) in enumerate(PATHS[1]):
        maps.embedding[0, frame, row, column] = alike
    index = _pick(maps.embedding.flatten(1, 3), maps.objectness.flatten(1).log(), 2)
    expected = [row * W + column for row, column in (PATHS[0][0], PATHS[1][0])]
    assert index[0].tolist() == expected


def test_of_two_alike_each_slot_keeps_its_own(model: ModelConfig, maps: CellMaps) -> None:
    """By likeness alone, as in training, some weight of the first lies on the second object."""
    for frame, (row, column) in enumerate(PATHS[1]):
        maps.embedding[0, frame, row, column, 1:3] = torch.tensor([0.7, 0.51**0.5])
    queries, memory = SeedQueries(model), torch.randn(1, T * H * W, C)
    shared = queries.eval()(volume((T, H, W), C), memory, maps)[2]
    alone = queries.train()(volume((T, H, W), C), memory, maps)[2]
    for frame, places in enumerate(zip(*PATHS, strict=True)):
        (x, y), (other_x, other_y) = (((c + 0.5) / W, (r + 0.5) / H) for r, c in places)
        # A remainder of the softmax; alone, it is .045.
        assert shared[0, 0, frame, :2].tolist() == pytest.approx((x, y), abs=3e-3)
        assert shared[0, 1, frame, :2].tolist() == pytest.approx((other_x, other_y), abs=3e-3)
        objects = maps.objectness[0, frame]
        own, other = (objects[place] for place in places)
        other = other * math.exp(-3)  # a cosine of 1 and one of .7, over the temperature
        share = (other / (own + other)).item()
        expected = (x + share * (other_x - x), y + share * (other_y - y))
        assert alone[0, 0, frame, :2].tolist() == pytest.approx(expected, abs=1e-3)


def _scene(objects: Sequence[Tensor], background: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Embeddings [1, S, E] and prior [1, S]: objects [T, E] are the first cells of their frame."""
    shown = torch.stack(list(objects), dim=1)  # [T, G, E]
    rest = background.expand(len(shown), cells - shown.shape[1], E)
    objectness = torch.full((len(shown), cells), 0.02)
    objectness[:, : shown.shape[1]] = 0.8
    return torch.cat((shown, rest), 1).flatten(0, 1)[None], objectness.flatten().log()[None]


def _towards(cosine: float, axis: int) -> Tensor:
    """A direction of length 1 at an angle to axis 0, [E]."""
    return cosine * torch.eye(E)[0] + (1 - cosine**2) ** 0.5 * torch.eye(E)[axis]


@pytest.mark.parametrize("cosine", [0.5, 0.7, 0.8, 0.85, 0.9])
def test_sharing_does_not_make_two_objects_one(cosine: float) -> None:
    first, second = _towards(1, 1).expand(6, E), _towards(cosine, 1).expand(6, E)
    embedding, prior = _scene((first, second), torch.eye(E)[2], 90)
    own = embedding[:, :2]
    alone = _in_frames(_likeness(own, embedding) + prior[:, None], 6)[0, 0, :, 0]
    shared = _in_frames(_share(own, embedding, prior, 6), 6)[0, 0, :, 0]
    assert (shared > alone).all()
    assert (shared > 0.85).all()


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.4])
def test_many_cells_of_background_draw_no_slot_away(cosine: float) -> None:
    embedding, prior = _scene([_towards(1, 1).expand(6, E)], _towards(cosine, 2), 2000)
    alone = _in_frames(_likeness(embedding[:, :1], embedding) + prior[:, None], 6)[0, 0, :, 0]
    shared = _in_frames(_share(embedding[:, :1], embedding, prior, 6), 6)[0, 0, :, 0]
    assert (shared > 0.99 * alone).all()


def test_a_slot_learns_how_its_object_turns() -> None:
    """The last view has a cosine of .34 to the seed, and of .82 to the mean of all three.

    In the second of four frames the object is absent.
    """
    views = torch.stack([_towards(math.cos(math.radians(angle)), 1) for angle in (0, 90, 35, 70)])
    views[1] = torch.eye(E)[2]
    embedding, prior = _scene([views], torch.eye(E)[2], 20)
    likeness = _share(embedding[:, :1], embedding, prior, 4) - prior
    found = likeness.unflatten(-1, (4, 20))[0, 0, [0, 2, 3], 0]
    assert (found > 10 * math.cos(math.radians(38))).all()  # of 35 degrees, less what none takes
    assert (likeness.unflatten(-1, (4, 20))[..., 1:] < 0).all()


def test_clips_of_a_batch_and_padded_cells_share_nothing() -> None:
    torch.manual_seed(0)
    embedding = F.normalize(torch.randn(2, 18, E), dim=-1)
    prior = torch.rand(2, 18).log()
    prior[1, 12:] = torch.finfo(prior.dtype).min  # its third frame
    together = _share(embedding[:, :3], embedding, prior, 3)
    for clip in range(2):
        alone = _share(*(x[clip : clip + 1] for x in (embedding[:, :3], embedding, prior)), 3)
        torch.testing.assert_close(together[clip : clip + 1], alone)
    embedding[1, 12:] = F.normalize(torch.randn(6, E), dim=-1)
    other = _share(embedding[:, :3], embedding, prior, 3)
    torch.testing.assert_close(other[1, :, :12], together[1, :, :12])
    assert other.isfinite().all()


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
