"""VisTR's mask branch against its definition slot by slot, and the deformable convolution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from defvis.config import Config, ModelConfig
from defvis.models.deform_conv import DeformConv2d
from defvis.models.mask_inputs import FrameMaps, MaskInputs
from defvis.models.vistr_masks import FrameFeatures, SequenceMaskHead
from tests.examples.support import changed

B, J, T, C, M = 2, 3, 4, 32, 4
LATERALS = (6, 10)  # channels, fine to coarse
SIZES = ((13, 18), (7, 9), (4, 5))  # fine lateral, coarse lateral, memory


@pytest.fixture
def model(config: Config) -> ModelConfig:
    return replace(config.model, embed_dim=C, num_heads=M, mask_head="vistr", num_frames=T)


@pytest.fixture
def parts(model: ModelConfig) -> tuple[FrameFeatures, SequenceMaskHead]:
    head = SequenceMaskHead(model, 2)
    torch.nn.init.normal_(head.deform.offsets.weight, std=0.5)
    return FrameFeatures(model, LATERALS), head


@pytest.fixture
def inputs() -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Memory and lateral maps of B * T frames, queries."""
    memory = torch.randn(B * T, C, *SIZES[2])
    laterals = [torch.randn(B * T, c, *size) for c, size in zip(LATERALS, SIZES, strict=False)]
    return memory, laterals, torch.randn(B, J, T, C)


def compute(parts, inputs, padding=None, present=None):  # type: ignore[no-untyped-def]
    memory, laterals, queries = inputs
    features = parts[0](FrameMaps(memory, laterals, torch.zeros(0)))
    features = tuple(x.unflatten(0, (-1, memory.shape[0] // len(queries))) for x in features)
    return parts[1](MaskInputs(features, queries, torch.zeros(0), padding, present))


def plain_deform_conv(x: torch.Tensor, layer: DeformConv2d) -> torch.Tensor:
    """X [C, H, W] tap by tap with grid_sample; offsets are (dy, dx) of each tap."""
    _, height, width = x.shape
    offsets = F.conv2d(x[None], layer.offsets.weight, layer.offsets.bias)[0]
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    out = torch.zeros(layer.weight.shape[0], height, width)
    for tap in range(9):
        y = ys + tap // 3 - 1 + offsets[2 * tap]
        x_ = xs + tap % 3 - 1 + offsets[2 * tap + 1]
        grid = torch.stack(((2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        sampled = F.grid_sample(x[None], grid[None], padding_mode="zeros", align_corners=False)[0]
        out += torch.einsum("oc,chw->ohw", layer.weight[:, :, tap // 3, tap % 3], sampled)
    return out


def test_deformable_convolution_moves_its_taps() -> None:
    layer, x = DeformConv2d(5, 3), torch.randn(2, 5, 6, 7, requires_grad=True)
    still = F.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), still, atol=1e-5, rtol=1e-4)  # at the start
    torch.nn.init.normal_(layer.offsets.weight, std=0.6)
    torch.nn.init.normal_(layer.offsets.bias, std=1.5)
    out = layer(x)
    expected = torch.stack([plain_deform_conv(image, layer) for image in x])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    leaves = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert layer(x[:0]).shape == (0, 3, 6, 7)


def test_against_the_definition_slot_by_slot(parts, inputs) -> None:  # type: ignore[no-untyped-def]
    """As VisTR describes it: one convolution of memory and maps together, loops over everything."""
    features, head = parts
    memory, laterals, queries = inputs
    masks = compute(parts, inputs)
    assert masks.shape == (B, J, T, *SIZES[0])
    weight = torch.cat((features.memory.weight, head.maps.weight), dim=1)
    for clip, slot in ((0, 1), (1, 2)):
        frames = []
        for t in range(T):
            row = clip * T + t
            key = F.conv2d(memory[row][None], features.keys.weight, features.keys.bias)[0]
            query = head.query(queries[clip, slot, t])
            logits = (query[:, None, None] * key).unflatten(0, (M, -1)).sum(1) / (C / M) ** 0.5
            maps = logits.flatten().softmax(0).view_as(logits)
            assert maps.sum().item() == pytest.approx(1)
            x = torch.cat((memory[row], maps))[None]
            x = F.relu(head.norms[0](F.conv2d(x, weight, features.memory.bias, padding=1)))
            for i in range(2):
                lateral = features.laterals[i](laterals[1 - i][row][None])
                x = F.relu(head.norms[i + 1](head.convs[i](x)))
                x = F.interpolate(x, size=lateral.shape[-2:], mode="nearest") + lateral
            frames.append(F.relu(head.deform_norm(plain_deform_conv(x[0], head.deform)[None]))[0])
        x = torch.stack(frames, dim=1)[None]
        for conv, norm in zip(head.sequence_convs, head.sequence_norms, strict=True):
            x = F.relu(F.group_norm(conv(x), norm.num_groups, norm.weight, norm.bias))
        expected = head.mask(x)[0, 0]
        torch.testing.assert_close(masks[clip, slot], expected, atol=1e-4, rtol=1e-3)


def test_untrained_masks_are_mostly_background(parts, inputs) -> None:  # type: ignore[no-untyped-def]
    """Masks that begin half full end up empty in training."""
    assert parts[1].mask.bias.sigmoid().item() == pytest.approx(0.12)
    assert 0.06 < compute(parts, inputs).sigmoid().mean() < 0.24


def test_temporal_receptive_field_is_13_frames(model: ModelConfig) -> None:
    """Three convolutions of 3 frames, 2 apart, see 6 frames to either side."""
    head = SequenceMaskHead(model, 1).eval()
    for norm in head.sequence_norms:  # They would mix all frames.
        norm.forward = lambda x, real: x  # type: ignore[method-assign]
    x = torch.randn(1, 24, 20, 6, 6, requires_grad=True)
    y = x
    for conv in head.sequence_convs:
        y = conv(y)
    (gradient,) = torch.autograd.grad(head.mask(y)[:, :, 9].sum(), x)
    seen = gradient.abs().sum((0, 1, 3, 4)).nonzero()[:, 0].tolist()
    assert seen == [3, 5, 7, 9, 11, 13, 15]
    assert seen[-1] - seen[0] + 1 == 13


@pytest.mark.parametrize(("chunk", "checkpointing"), [(1, True), (4, False)])
def test_chunks_change_nothing(  # type: ignore[no-untyped-def]
    chunk: int, checkpointing: bool, model: ModelConfig, parts, inputs
) -> None:
    features, whole = parts
    head = SequenceMaskHead(replace(model, mask_chunk=chunk, checkpointing=checkpointing), 2)
    head.load_state_dict(whole.state_dict())
    leaves = [*features.parameters(), *inputs[1]]
    for leaf in inputs[1]:
        leaf.requires_grad_()
    masks = compute((features, head), inputs)
    expected = compute(parts, inputs)
    torch.testing.assert_close(masks, expected, atol=1e-5, rtol=1e-4)
    first, second = (
        torch.autograd.grad(x.square().sum(), [*leaves, *y.parameters()])
        for x, y in ((masks, head), (expected, whole))
    )
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_absent_slots_cost_nothing(parts, inputs, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    present = torch.tensor([[True, False, True], [False, True, False]])
    expected = compute(parts, inputs)
    computed = []
    original = DeformConv2d.forward

    def count(self: DeformConv2d, x: torch.Tensor) -> torch.Tensor:
        computed.append(len(x))
        return original(self, x)

    monkeypatch.setattr(DeformConv2d, "forward", count)
    masks = compute(parts, inputs, present=present)
    assert computed == [3 * T]
    torch.testing.assert_close(masks[present], expected[present], atol=1e-5, rtol=1e-4)
    assert not masks[~present].any()


@pytest.mark.parametrize("slots", [0, J])
def test_no_slot_at_all_still_reaches_every_weight(parts, inputs, slots: int) -> None:  # type: ignore[no-untyped-def]
    memory, laterals, queries = inputs
    present = torch.zeros(B, slots, dtype=torch.bool)
    masks = compute(parts, (memory, laterals, queries[:, :slots]), present=present)
    assert masks.shape == (B, slots, T, *SIZES[0])
    assert not masks.any()
    masks.sum().backward()
    for part in parts:
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any()


def test_padding_in_time_changes_nothing(parts, inputs) -> None:  # type: ignore[no-untyped-def]
    memory, laterals, queries = inputs
    real = 3
    padding = torch.zeros(B, T, *SIZES[2], dtype=torch.bool)
    padding[:, real:] = True
    masks = compute(parts, inputs, padding)
    assert masks.isfinite().all(), "a frame of padding alone"

    def cut(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (B, T))[:, :real].flatten(0, 1)

    short = (cut(memory), [cut(x) for x in laterals], queries[:, :, :real])
    torch.testing.assert_close(masks[:, :, :real], compute(parts, short), atol=1e-4, rtol=1e-3)


def test_padded_cells_get_no_attention(parts, inputs) -> None:  # type: ignore[no-untyped-def]
    _, head = parts
    keys = torch.randn(1, T, C, *SIZES[2])
    padding = torch.zeros(1, T, *SIZES[2], dtype=torch.bool)
    padding[..., 3:] = True
    maps = head._attention_maps(inputs[2][:1, 0], keys, padding)
    assert not maps[..., 3:].any()
    torch.testing.assert_close(maps.sum((2, 3, 4)), torch.ones(1, T))


def test_needs_a_finer_map(config: Config) -> None:
    for change in ('model.backbone.out_features=["stage2"]', "model.levels=2"):
        wrong = changed(config, "model.mask_head=vistr", change)
        with pytest.raises(ValueError, match=r"besides those that feed the encoder, got [12] for"):
            wrong.check()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_exported_batch_is_free(parts, inputs) -> None:  # type: ignore[no-untyped-def]
    """Unless slots are computed in chunks, whose number the batch decides."""

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = parts[1]

        def forward(self, queries: torch.Tensor, *features: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(MaskInputs(features, queries, torch.zeros(0)))
            return out

    memory, laterals, queries = inputs
    features = [
        x.detach().unflatten(0, (B, T))
        for x in parts[0](FrameMaps(memory, laterals, torch.zeros(0)))
    ]
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Head().eval(), (queries, *features),
        dynamic_shapes=({0: batch}, tuple({0: batch} for _ in features)),
    )  # fmt: skip
    more = [x.repeat(2, *[1] * (x.dim() - 1))[:3] for x in (queries, *features)]
    torch.testing.assert_close(program.module()(*more), Head().eval()(*more), rtol=1e-6, atol=1e-6)
