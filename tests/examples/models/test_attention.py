"""The kinds of attention to a clip, and the decoder's queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defvis.config import Config, ModelConfig
from defvis.models.attention import ATTENTIONS, DeformableAttention, FramesAttention, Volume
from defvis.models.decoder import Decoder
from defvis.models.encoder import Encoder
from defvis.models.layers import xavier_
from defvis.models.queries import FreeQueries
from stdeform import MSDeformAttn
from tests.examples.support import volume

T, H, W, C = 5, 3, 4, 24


@pytest.fixture
def model(config: Config) -> ModelConfig:
    return replace(config.model, num_frames=T)


def clip(padding: torch.Tensor | None = None, frames: int = T) -> Volume:
    return volume((frames, H, W), C, padding)


def shaken(module: nn.Module) -> nn.Module:
    """Moves offsets and weights away from the pattern they start with."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.1)
    return module.eval()


def test_frames_attention_samples_every_frame(model: ModelConfig) -> None:
    """Against grid_sample frame by frame, with one softmax over all frames and points."""
    layer = shaken(FramesAttention(model))
    query, memory = torch.randn(1, 7, C), torch.randn(1, T * H * W, C)
    points = torch.rand(1, 7, 3)
    out = layer(query, points[:, :, None], memory, clip())
    deform, heads, k = layer.deform, model.num_heads, model.num_points
    offsets = deform.sampling_offsets(query).view(7, heads, T, k, 2)
    weights = deform.attention_weights(query).view(7, heads, T * k).softmax(-1)
    value = deform.value_proj(memory).view(T, H, W, heads, C // heads)
    expected = torch.zeros(7, heads, C // heads)
    for head in range(heads):
        for t in range(T):
            place = points[0, :, None, :2] + offsets[:, head, t] / torch.tensor([W, H])
            sampled = F.grid_sample(
                value[t, :, :, head].permute(2, 0, 1)[None], 2 * place[None] - 1,
                mode="bilinear", padding_mode="zeros", align_corners=False,
            )[0]  # fmt: skip
            share = weights.view(7, heads, T, k)[:, head, t]
            expected[:, head] += (sampled * share).sum(-1).T
    torch.testing.assert_close(
        out, deform.output_proj(expected.flatten(1))[None], atol=1e-5, rtol=1e-4
    )


def test_frames_attention_knows_its_frames(model: ModelConfig) -> None:
    layer = FramesAttention(model)
    with pytest.raises(ValueError, match=r"weights for num_frames = 5 frames, got a clip of 6"):
        layer(torch.zeros(1, 1, C), torch.zeros(1, 1, 1, 3), torch.zeros(1, 72, C), clip(frames=6))


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_an_exported_batch_is_free(kind: str, model: ModelConfig) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = shaken(ATTENTIONS[kind](model))

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(*inputs, clip())
            return out

    layer = Layer().eval()
    query, points = torch.randn(3, 7, C), torch.rand(3, 7, 1, 3)
    memory = torch.randn(3, T * H * W, C)
    free = ({0: torch.export.Dim.DYNAMIC},) * 3
    example = (query[:2], points[:2], memory[:2])
    program = torch.export.export(layer, example, dynamic_shapes=(free,))
    assert torch.equal(program.module()(query, points, memory), layer(query, points, memory))


@pytest.mark.parametrize(
    ("kind", "points"), [(DeformableAttention, (5,)), (DeformableAttention, (3, 12)),
                         (DeformableAttention, (12, 3)), (FramesAttention, (5,))]
)  # fmt: skip
def test_boxes_spread_the_pattern_over_themselves(
    kind: type[nn.Module], points: tuple[int, ...], model: ModelConfig
) -> None:
    """At the start, points reach the box's edge and not beyond, whatever its size and level."""
    levels = len(points)
    layer = kind(
        replace(model, levels=levels, num_points=points[0], coarser_points=sum(points[1:]))
    )
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[10:30, 4:36] = True  # the box with a margin of a cell, for interpolation
    outside = (~inside).flatten().repeat(T)
    box = torch.tensor([[0.5, 0.5, 0.5, 0.7, 0.4]]).expand(1, 1, levels, 5)  # x, y, t, w, h
    big = Volume(
        ((T, 40, 40),) * levels, torch.zeros(1), None, torch.ones(1, 1, 3), torch.ones(1, T) > 0
    )
    query = torch.zeros(1, 1, C)
    memory = torch.zeros(1, levels, T * 40 * 40, C)
    zero = layer(query, box, memory.flatten(1, 2), big)
    for level in range(levels):
        memory = torch.zeros_like(memory)
        memory[:, level, outside] = 1e3
        torch.testing.assert_close(layer(query, box, memory.flatten(1, 2), big), zero)
        wider = box * torch.tensor([1, 1, 1, 1.3, 1.3])
        assert not layer(query, wider, memory.flatten(1, 2), big).allclose(zero, atol=0.1)


def test_an_offset_of_one_in_t_is_a_frame(model: ModelConfig) -> None:
    layer = DeformableAttention(replace(model, levels=2, num_points=12, coarser_points=3))
    boxes = layer._boxes(torch.rand(1, 7, 2, 5), T)
    frames = boxes[..., 5] * T / 2 / torch.tensor([12, 3])  # offset / K * box / 2, in fractions
    torch.testing.assert_close(frames, torch.ones(1, 7, 2))


def test_dense_attention_is_softmax_over_all_cells(model: ModelConfig) -> None:
    layer = ATTENTIONS["dense"](model).eval()
    query, memory = torch.randn(1, 7, C), torch.randn(1, T * H * W, C)
    padding = torch.zeros(1, T, H, W, dtype=torch.bool)
    padding[..., 3:] = True
    where = clip(padding)
    out = layer(query, None, memory, where)
    w_q, w_k, w_v = layer.attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = layer.attention.in_proj_bias.chunk(3)
    heads = (model.num_heads, -1)
    q = F.linear(query, w_q, b_q).unflatten(-1, heads)
    k = F.linear(memory + where.position, w_k, b_k).unflatten(-1, heads)
    v = F.linear(memory, w_v, b_v).unflatten(-1, heads)
    logits = torch.einsum("bqmc,bsmc->bmqs", q, k) / (C / model.num_heads) ** 0.5
    weights = logits.masked_fill(padding.flatten(1)[:, None, None], -torch.inf).softmax(-1)
    expected = layer.attention.out_proj(torch.einsum("bmqs,bsmc->bqmc", weights, v).flatten(2))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_own_frame_attention_sees_one_frame(model: ModelConfig) -> None:
    """Even if the layer's weights ask for more, as those of a trained deformable one do."""
    encoder = shaken(Encoder(replace(model, encoder_attention="own-frame", encoder_layers=1)))
    torch.nn.init.normal_(encoder.layers[0].attention.deform.sampling_offsets.bias)
    cells = torch.randn(1, T, H, W, C, requires_grad=True)
    encoder(cells.flatten(1, 3), clip()).unflatten(1, (T, -1))[:, 2].sum().backward()
    assert cells.grad is not None
    assert cells.grad[:, 2].any()
    assert not cells.grad[:, [0, 1, 3, 4]].any()


@pytest.mark.parametrize("kind", ["deformable", "own-frame"])
def test_points_differ_at_the_start(kind: str, model: ModelConfig) -> None:
    """Equal points would have equal gradients, and stay one point."""
    attention = ATTENTIONS[kind](replace(model, levels=2, num_points=12, coarser_points=6))
    xavier_(attention)
    layer = attention.deform
    offsets = layer.sampling_offsets(torch.zeros(C)).unflatten(0, (model.num_heads, 18, 3))
    for level, farthest in zip(offsets.split([12, 6], dim=1), (3, 2), strict=True):
        assert len(level[0].unique(dim=0)) == level.shape[1]
        assert level[..., :2].abs().max() == farthest


@pytest.mark.parametrize("kind", sorted(ATTENTIONS))
def test_encoder_ignores_padding(kind: str, model: ModelConfig) -> None:
    """Real cells are encoded as without the padding around them, up to the fade at the border."""
    encoder = shaken(Encoder(replace(model, encoder_attention=kind)))
    cells = torch.randn(1, T, H, W, C)
    padding = torch.zeros(1, T, H, W, dtype=torch.bool)
    padding[:, 3:] = True
    other = torch.where(padding[..., None], torch.randn_like(cells), cells)
    first, second = (encoder(x.flatten(1, 3), clip(padding)) for x in (cells, other))
    short = encoder(cells[:, :3].flatten(1, 3), clip(frames=3))
    real = slice(0, 3 * H * W)
    torch.testing.assert_close(first[:, real], second[:, real])
    torch.testing.assert_close(first[:, real], short, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", sorted(ATTENTIONS))
def test_checkpointing_changes_nothing(kind: str, model: ModelConfig) -> None:
    model = replace(
        model, encoder_attention=kind, decoder_attention=kind, dropout=0.2, queries="slots"
    )
    memory = torch.randn(1, T * H * W, C)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        encoder, decoder = (
            part(replace(model, checkpointing=checkpointing)) for part in (Encoder, Decoder)
        )
        torch.manual_seed(2)  # of the dropout
        logits, boxes, _ = decoder(encoder(memory, clip()), clip())
        (logits.sum() + boxes.square().sum()).backward()
        parameters = [*encoder.parameters(), *decoder.parameters()]
        gradients.append([p.grad for p in parameters])
    for first, second in zip(*gradients, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second)


def test_free_queries_are_one_per_slot_and_frame(model: ModelConfig) -> None:
    queries = FreeQueries(replace(model, queries="free"))
    content, position, points = queries(torch.ones(2, T, dtype=torch.bool))
    assert not content.any()
    assert position.equal(queries.table.expand(2, -1, -1, -1))
    assert points is not None
    torch.testing.assert_close(points, queries.points.project(position).sigmoid())


def test_free_queries_of_other_lengths(model: ModelConfig) -> None:
    """A clip of real length L reads the table at the L middles of its parts."""
    queries = FreeQueries(replace(model, num_frames=4))
    with torch.no_grad():
        queries.table[:] = torch.arange(4.0)[:, None] + 10 * torch.arange(3)[:, None, None]
    mask = torch.tensor([[True] * 8, [True] * 2 + [False] * 6, [True] * 4 + [False] * 4])
    position = queries(mask)[1][:, 2, :, 0] - 20
    expected = [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    assert position[0].tolist() == pytest.approx(expected)
    assert position[1, :2].tolist() == pytest.approx([0.5, 2.5])
    assert position[2, :4].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_points_and_dense_boxes(model: ModelConfig) -> None:
    """A deformable query predicts its box from its point, a dense one from nothing."""
    model = replace(model, queries="free", refine_boxes=False, shared_heads=True)
    decoder = Decoder(model).eval()
    memory = torch.randn(1, T * H * W, C)
    boxes = decoder(memory, clip())[1]
    points = decoder.queries(clip().frame_mask)[2]
    torch.testing.assert_close(boxes[..., :2], points.expand_as(boxes[..., :2]), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        boxes[..., 2:], torch.tensor(-2.0).sigmoid().expand_as(boxes[..., 2:])
    )
    dense = Decoder(replace(model, decoder_attention="dense"))
    assert dense.queries.points is None
    assert dense(memory, clip())[1].std() > 0.01


def test_refined_points_become_boxes(model: ModelConfig) -> None:
    """The second layer looks at the boxes of the first and moves from them."""
    decoder = Decoder(replace(model, queries="free"))
    seen = []
    decoder.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    boxes = decoder(torch.randn(1, T * H * W, C), clip())[1]
    (references,) = seen
    assert references.shape[-2:] == (1, 5)
    references = references[:, :, 0]
    first = boxes[0].flatten(1, 2)
    torch.testing.assert_close(references[..., [0, 1, 3, 4]], first)
    torch.testing.assert_close(references[..., 2], (torch.arange(T) + 0.5).repeat(3)[None] / T)
    assert not references.requires_grad
    torch.testing.assert_close(boxes[1], boxes[0], atol=1e-4, rtol=0)  # zero at the start
    with pytest.raises(ValueError, match="refine_boxes needs a box head per layer"):
        Decoder(replace(model, shared_heads=True))


def test_xavier_keeps_the_sampling_pattern(model: ModelConfig) -> None:
    model = replace(model, initialisation="xavier", num_points=10)
    encoder = Encoder(model)
    weight = encoder.layers[0].feedforward.layers[0].weight
    bound = (6 / sum(weight.shape)) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound
    deform = encoder.layers[0].attention.deform
    assert not deform.sampling_offsets.weight.any()
    assert deform.sampling_offsets.bias.view(-1, 3)[:, 2].unique().tolist() == [-2, -1, 0, 1, 2]
    image_layer = MSDeformAttn(C, 1, 2, 4)
    xavier_(image_layer)
    assert not image_layer.attention_weights.weight.any()
