"""The model is tried on the data's frames before the first step, without a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ResNetBackbone, ResNetConfig

from defvis.config import Config, DataConfig
from defvis.data.dataset import Video
from defvis.models.model import DefVIS
from defvis.training.preflight import extremes, leaves_some_unused, training_sizes, try_model
from tests.examples.support import changed


def video(height: int, width: int) -> Video:
    return Video(1, width, height, (Path("x.png"),), ())


def test_extreme_sizes() -> None:
    plain = DataConfig()
    assert training_sizes(video(40, 60), plain) == {(40, 60)}
    cut = replace(plain, crop=1.0, crop_share=(0.5, 1.0))
    assert training_sizes(video(40, 60), cut) == {(40, 60), (20, 30), (40, 30), (20, 60)}
    scaled = replace(plain, short_sides=(10, 20), long_side=25)
    assert training_sizes(video(40, 60), scaled) == {(17, 25), (8, 12)}
    videos = [video(40, 60), video(30, 70), video(90, 20)]
    assert extremes(videos, [video(80, 80)], plain) == [(30, 70), (90, 20), (80, 80)]


def test_nothing_changes(config: Config) -> None:
    model = DefVIS(changed(config.model, "dropout=0.5")).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    try_model(model, [(32, 48), (40, 40)], config)
    assert not leaves_some_unused(model, (32, 48))
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name]), name
    assert random.equal(torch.get_rng_state())
    assert model.backbone.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_backbones_that_cannot_take_the_frames(config: Config, tmp_path: Path) -> None:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    ResNetBackbone(ResNetConfig(num_channels=1, **sizes)).save_pretrained(tmp_path / "grey")
    grey = changed(config, f"model.backbone.name={tmp_path / 'grey'}")
    with pytest.raises(ValueError, match=r"backbone .*grey cannot take frames of 32 x 48 pixels"):
        try_model(DefVIS(grey.model), [(32, 48), (32, 48)], grey)
    # Batch norm in training has no variance of a single cell.
    single = changed(config, "batch_size=1", "model.num_frames=1")
    with pytest.raises(ValueError, match=r"frames of 4 x 4 pixels.* more than 1 value"):
        try_model(DefVIS(single.model), [(4, 4), (32, 48)], single)


def test_backbones_that_are_none(config: Config, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name, reason in ((tmp_path, "it is a bert"), (tmp_path / "none", "")):
        other = changed(config.model, f"backbone.name={name}")
        with pytest.raises(ValueError, match=rf"model\.backbone\.name: cannot load .*: {reason}"):
            DefVIS(other)


@pytest.mark.parametrize(("used", "unused"), [("stage2", False), ("stage1", True)])
def test_later_stages_are_unused(config: Config, used: str, unused: bool) -> None:
    model = DefVIS(changed(config.model, f'backbone.out_features=["{used}"]'))
    assert leaves_some_unused(model, (32, 32)) == unused
