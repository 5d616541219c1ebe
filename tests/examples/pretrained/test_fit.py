"""Configs that are fitted to files of weights, and what the fitted model then computes."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetBackbone, ResNetConfig, ResNetForImageClassification

from defvis.config import BackboneConfig, Config
from defvis.config_io import flatten
from defvis.models.backbone import Backbone
from defvis.models.model import DefVIS
from defvis.presets import preset
from defvis.pretrained.checkpoint_file import previous
from defvis.pretrained.conversion import recognise
from defvis.pretrained.fit import fit_config
from defvis.pretrained.resnet_sizes import resnet_name
from defvis.pretrained.tensor_file import CheckpointError
from defvis.pretrained.weights import load_weights
from defvis.pretrained.weights_file import WeightsFile
from defvis.training.load_trained import load_trained
from tests.examples.pretrained.state_dicts import (
    BACKBONE,
    HEADS,
    C,
    deformable_detr,
    linear,
    resnet,
    vistr,
)
from tests.examples.support import changed


def in_memory(state: dict[str, Tensor]) -> WeightsFile:
    return WeightsFile(Path("x.pth"), recognise(state), state)


def sizes(depths: tuple[int, ...], widths: tuple[int, ...], layer_type: str) -> BackboneConfig:
    return replace(  # type: ignore[arg-type]
        BACKBONE, layer_type=layer_type, embedding_size=64, hidden_sizes=widths, depths=depths
    )


BASIC, WIDE = (64, 128, 256, 512), (256, 512, 1024, 2048)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("ResNet-18", sizes((2, 2, 2, 2), BASIC, "basic")),
        ("ResNet-34", sizes((3, 4, 6, 3), BASIC, "basic")),
        ("ResNet-50", sizes((3, 4, 6, 3), WIDE, "bottleneck")),
        ("ResNet-101", sizes((3, 4, 23, 3), WIDE, "bottleneck")),
    ],
)
def test_sizes_of_a_resnet(name: str, backbone: BackboneConfig) -> None:
    """Stages up to stride 16 of a small preset; all four of a preset that is made for them."""
    with torch.device("meta"):
        file = in_memory(resnet(sizes=backbone) | linear("fc", 1000, 512))
    fitted, notes = fit_config(Config(), file)
    stages = ("stage1", "stage2", "stage3")
    assert fitted.model.backbone == replace(
        backbone,
        hidden_sizes=backbone.hidden_sizes[:3],
        depths=backbone.depths[:3],
        out_features=stages,
    )
    assert fitted.backbone_stage.steps == 0
    assert "backbone_stage.steps = 0, as the file has a trained backbone" in notes
    assert fit_config(preset("paper"), file)[0].model.backbone == backbone
    assert resnet_name(backbone) == name


def test_what_is_set_stays() -> None:
    file = in_memory(resnet())
    small = fit_config(Config(), file, short_side=96)[0].model.backbone
    assert small.out_features == ("stage1", "stage2"), "cells of 8 pixels"
    mine = changed(
        Config(), 'model.backbone.out_features=["stage2", "stage4"]', "data.short_side=9"
    )
    fixed = {"model.backbone.out_features", "backbone_stage.steps", "model.backbone.frozen_norm"}
    fitted, notes = fit_config(mine, file, fixed)
    assert fitted.model.backbone == replace(
        BACKBONE, out_features=("stage2", "stage4"), frozen_norm=False
    )
    assert fitted.backbone_stage.steps == 1000
    assert len(notes) == 5
    with pytest.raises(ValueError, match=r"fields that are set: .*depths must have one entry for"):
        fit_config(mine, file, {*fixed, "model.backbone.depths"})


def test_stages_of_several_levels() -> None:
    """The finest has the cells that a single level would have, and each a projection."""
    two = changed(Config(), "model.levels=2")
    detr = in_memory(deformable_detr(4))
    for short_side in (96, 300):  # Its levels of 1 x 1 are of stages 2, 3 and 4.
        used = fit_config(two, detr, short_side=short_side)[0].model.backbone.out_features
        assert used == ("stage1", "stage2", "stage3", "stage4")[: 3 if short_side == 96 else 4]
    apart = changed(
        Config(), "model.backbone.hidden_sizes=[8, 16, 24, 32]",
        "model.backbone.depths=[1, 1, 1, 1]", "model.levels=2",
        'model.backbone.out_features=["stage1", "stage2", "stage4"]',
    )  # fmt: skip
    with torch.device("meta"):
        state = in_memory(DefVIS(apart.model).state_dict())
    fitted = fit_config(Config(), state)[0].model
    assert (fitted.levels, fitted.backbone) == (2, apart.model.backbone)


def reference(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The four maps of a torchvision ResNet, written from its description."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight"))
        return F.batch_norm(x, *parts, state[f"{norm}.bias"], eps=1e-5)

    x, maps = F.max_pool2d(conv(x, "conv1", "bn1", 2).relu(), 3, 2, 1), []
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            count = 3 if f"{name}.conv3.weight" in state else 2
            stride = 2 if stage > 1 and block == 0 else 1
            y = x
            for number in range(1, count + 1):  # A bottleneck steps in its 3 x 3 convolution.
                step = stride if number == count - 1 else 1
                y = conv(y, f"{name}.conv{number}", f"{name}.bn{number}", step)
                y = y.relu() if number < count else y
            short = f"{name}.downsample"
            if f"{short}.0.weight" in state:
                x = conv(x, f"{short}.0", f"{short}.1", stride)
            x = (x + y).relu()
            block += 1
        maps.append(x)
    return maps


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_features_are_those_of_torchvision(layer_type: str, tmp_path: Path) -> None:
    """And of transformers' state dict of the same network, as safetensors."""
    shape = sizes((2, 1, 2, 1), (64, 96, 128, 160), layer_type)
    state = resnet(sizes=shape)
    torch.save(state, tmp_path / "resnet.pth", _use_new_zipfile_serialization=False)  # as theirs
    fitted, _ = fit_config(preset("paper"), tmp_path / "resnet.pth")
    model = DefVIS(replace(fitted.model, embed_dim=32, num_heads=2, encoder_layers=1))
    load_weights(model, tmp_path / "resnet.pth")
    # In float64 both are the same but for the order of sums.
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    wide = {
        name: value.double() if value.is_floating_point() else value
        for name, value in state.items()
    }
    found, expected = model.double().backbone(x), reference(wide, x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)

    settings = {k: v for k, v in shape.to_dict().items() if not k.startswith(("name", "frozen"))}
    whole = ResNetForImageClassification(ResNetConfig(**settings))
    body = {f"resnet.{name}": v for name, v in model.backbone.body.state_dict().items()}
    whole.load_state_dict(body, strict=False)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    again, _ = fit_config(preset("paper"), tmp_path / "model.safetensors")
    assert again.model == fitted.model
    other = DefVIS(model.config)
    load_weights(other, tmp_path / "model.safetensors")
    assert other.double().backbone(x)[-1].equal(found[-1])


def test_transformers_of_other_projects_fit_the_default(tmp_path: Path) -> None:
    """All of projection, encoder, decoder and box heads, but queries of another number."""
    arguments = argparse.Namespace(nheads=HEADS)
    for name, state in {"detr": deformable_detr(), "vistr": vistr()}.items():
        torch.save({"model": state, "args": arguments}, tmp_path / name)
        fitted, notes = fit_config(Config(), tmp_path / name)
        assert f"model.embed_dim = {C}, as the file's" in notes
        assert (fitted.model.num_heads, fitted.model.feedforward_dim) == (HEADS, 32)
        report = load_weights(DefVIS(fitted.model), tmp_path / name)
        lacking = {part for part in report.missing if not part.startswith("mask_")}
        lacking -= {part for part in lacking if "class" in part}
        own = {"decoder.queries.table"}
        if name == "vistr":  # Its attention is dense.
            own |= {part for part in lacking if "sampling" in part or "attention_w" in part}
            own |= {f"decoder.queries.points.project.{kind}" for kind in ("weight", "bias")}
        assert lacking == own
    # A file with refined boxes has copies of the heads in the decoder.
    refined = deformable_detr() | linear("transformer.decoder.bbox_embed.0.layers.0", C, C)
    model = fit_config(Config(), in_memory(refined))[0].model
    assert (model.refine_boxes, model.shared_heads, model.num_heads) == (True, False, 8)


def test_released_encoder_fits_frames_as_levels() -> None:
    state = {name.removeprefix("vistr."): v for name, v in vistr(frame_levels=5).items()}
    file = replace(in_memory(state), num_heads=HEADS)
    model = fit_config(Config(), file)[0].model
    assert (model.encoder_attention, model.num_frames, model.num_points) == ("frames", 4, 6)
    report = load_weights(DefVIS(model), file)
    assert not [name for name in report.missing if name.startswith("encoder.")]


def test_a_run_is_continued_as_it_was_validated(tiny_run: Path, tmp_path: Path) -> None:
    """The same predictions bit for bit, from its folder, its file, and the one before."""
    trained = load_trained(tiny_run)
    fitted, notes = fit_config(Config(), tiny_run, {"model.num_slots"})
    assert fitted.model == replace(trained.config.model, num_slots=10)
    assert "backbone_stage.steps = 0, as the file has a trained backbone" in notes
    assert "model.embed_dim = 24, as the file's" in notes
    classes = trained.category_ids, trained.category_names
    model = DefVIS(trained.config.model).requires_grad_(False)  # else other kernels are used
    report = load_weights(model, tiny_run, classes)
    assert (report.skipped, report.missing) == ({}, ())
    frames = torch.randn(1, 4, 3, 48, 64)
    for one, other in zip(model.eval().predict(frames), trained.model.predict(frames), strict=True):
        assert one.equal(other)
    saved = torch.load(tiny_run / "checkpoint.pt", weights_only=True)
    raw = saved["model"]["decoder.queries.seed_content.weight"]
    assert not raw.equal(model.decoder.queries.seed_content.weight), "the average is another"

    shutil.copy(tiny_run / "checkpoint.pt", previous(tmp_path / "checkpoint.pt"))
    other = DefVIS(trained.config.model)
    with pytest.warns(UserWarning, match=r"using .*checkpoint\.pt\.previous"):
        load_weights(other, tmp_path, classes)
    mine, theirs = other.state_dict(), model.state_dict()
    assert all(value.equal(theirs[name]) for name, value in mine.items())

    # One that was saved in its backbone stage has no average, and has that stage before it.
    saved["state"].pop("average")
    saved["config"]["data"]["short_side"] = 40
    torch.save({**saved, "stage": "backbone"}, tmp_path / "early.pt")
    early, _ = fit_config(Config(), tmp_path / "early.pt")
    assert (early.backbone_stage.steps, early.data.short_side) == (1000, 40)
    load_weights(other, tmp_path / "early.pt", classes)
    assert other.decoder.queries.seed_content.weight.equal(raw)


@pytest.mark.parametrize(
    "name", ["small", "slots", "multiscale", "paper", "frames-as-levels", "paper-c256"]
)
def test_state_dict_of_this_program(name: str) -> None:
    """All that shapes tell: not the heads, nor whether boxes are refined."""
    slots = changed(Config(), "model.queries=slots")
    started = slots if name == "slots" else changed(preset(name), "model.identity_dim=7")
    sizes = ("embed_dim=24", "num_heads=2", "num_frames=4", "encoder_layers=1", "decoder_layers=2")
    more = ("num_points=5", "feedforward_dim=32", "project_groups=8", "mask_dim=8", "mask_hidden=4")
    made = changed(started, *(f"model.{each}" for each in (*sizes, *more)))
    with torch.device("meta"):
        state = DefVIS(made.model).state_dict()
    start = changed(Config(), "model.num_heads=2")
    refined = start.model.refine_boxes and not made.model.shared_heads
    fitted, notes = fit_config(start, in_memory(state))
    assert "model.num_heads = 2, as the preset's: shapes do not tell the file's" in notes
    with torch.device("meta"):
        again = DefVIS(replace(fitted.model, num_classes=made.model.num_classes)).state_dict()
    assert again.keys() == state.keys()
    assert not [k for k in again if again[k].shape != state[k].shape and "class" not in k]
    assert fitted.model.refine_boxes == refined


def test_how_levels_share_points_is_not_told_by_shapes() -> None:
    made = changed(preset("multiscale"), "model.num_points=8", "model.coarser_points=4")
    with torch.device("meta"):
        state = in_memory(DefVIS(made.model).state_dict())
        one = in_memory(DefVIS(Config().model).state_dict())
    told = "model.coarser_points = {}, as the preset's: shapes do not tell the file's"
    too_many = changed(made, "model.coarser_points=12")
    for start, points in (
        (made, (8, 4)), (preset("multiscale"), (6, 6)), (Config(), (6, 6)), (too_many, (6, 6)),
    ):  # fmt: skip
        fitted, notes = fit_config(start, state)
        assert fitted.model.points_per_level == points
        assert (told.format(fitted.model.coarser_points) in notes) == (start is not too_many)
    assert fit_config(made, one)[0].model.points_per_level == (12,)
    alone = fit_config(changed(made, "model.levels=1"), state, {"model.levels"})[0]
    assert alone.model.points_per_level == (8,)


def test_own_frame_attention_is_not_told_by_shapes() -> None:
    own = changed(Config(), "model.encoder_attention=own-frame")
    with torch.device("meta"):
        state = in_memory(DefVIS(own.model).state_dict())
    for start, kind in ((own, "own-frame"), (Config(), "deformable")):
        model = fit_config(start, state)[0].model
        assert (model.encoder_attention, model.decoder_attention) == (kind, "deformable")


def test_what_cannot_be_fitted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing in x\.pth fits .*'a'; known are checkpoints"):
        fit_config(Config(), in_memory({"a": torch.zeros(1)}))
    grouped = resnet()
    grouped["layer1.0.conv2.weight"] = torch.zeros(4, 1, 3, 3)
    with pytest.raises(
        ValueError, match=r"wide or grouped: .*convolution\.weight has shape \[4, 1"
    ):
        fit_config(Config(), in_memory(grouped))
    with pytest.raises(CheckpointError, match="is a folder without checkpoint"):
        fit_config(Config(), tmp_path)


def test_folder_of_hugging_face_is_a_backbone(tmp_path: Path) -> None:
    """As the message says, and all its weights are then taken."""
    sizes = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    body = ResNetBackbone(sizes)
    body.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"--set model\.backbone\.name={tmp_path}"):
        fit_config(Config(), tmp_path)
    named = changed(Config(), f"model.backbone.name={tmp_path}")
    own = Backbone(named.model.backbone).body.state_dict()
    assert all(value.equal(own[name]) for name, value in body.state_dict().items())
    changes = fit_config(named, in_memory(resnet()))[1]
    assert not [note for note in changes if note.startswith("model.")], "the name is the decision"
    assert flatten(named.to_dict())["model.backbone.name"] == str(tmp_path)
