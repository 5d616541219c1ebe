"""Two trainings from the same seed give the same model, bit for bit, by any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import stdeform.integrations.transformers as adapter
from stdeform import _native

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("needs_native")


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    adapter.enable()
    yield
    adapter.disable()


def model() -> Any:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    )
    backbone.out_features = ["stage2", "stage3", "stage4"]
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[16, 24, 32],
        decoder_in_channels=[32, 32, 32],
        d_model=32,
        encoder_hidden_dim=32,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_layers=2,
        num_queries=20,
        num_denoising=5,
        num_labels=3,
        freeze_backbone_batch_norms=False,
    )
    return transformers.RTDetrForObjectDetection(config)


def trained(num_threads: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters before and after two steps; the operator runs on `num_threads` threads."""
    _native.options.num_threads = num_threads
    torch.manual_seed(0)
    network = model().train()
    before = {name: each.detach().clone() for name, each in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(2):
        labels = [
            {"class_labels": torch.randint(3, (4,)), "boxes": 0.3 + 0.4 * torch.rand(4, 4)}
            for _ in range(2)
        ]
        loss = network(pixel_values=torch.randn(2, 3, 128, 128), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, {name: each.detach() for name, each in network.named_parameters()}


def test_two_steps_of_rt_detr() -> None:
    before, first = trained(num_threads=1)
    _, second = trained(num_threads=3)
    attention = [name for name in first if ".encoder_attn." in name]
    assert attention
    assert not any(torch.equal(before[name], first[name]) for name in attention)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
