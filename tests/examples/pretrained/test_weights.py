"""Weights of other projects: what is loaded where, what is reported, that no code runs."""

from __future__ import annotations

import argparse
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from defvis.config import BackboneConfig, Config
from defvis.models.model import DefVIS
from defvis.presets import PRESETS, preset
from defvis.pretrained.report import LoadReport
from defvis.pretrained.weights import load_weights, warn_of_random_frozen_parts
from defvis.pretrained.weights_file import WeightsFile, read_weights
from stdeform import MSDeformAttn
from tests.examples.pretrained.state_dicts import (
    BACKBONE,
    FRAMES,
    HEADS,
    SLOTS,
    C,
    deformable_detr,
    linear,
    resnet,
    tiny,
    vistr,
)
from tests.examples.support import changed


def saved(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """As the DETR family writes them: with the command line beside the weights."""
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4, masks=True)}, path)
    return path


def test_torchvision_resnet_by_renaming(tmp_path: Path) -> None:
    state = resnet() | linear("fc", 10, 128)
    torch.save(state, tmp_path / "resnet.pth")
    model = DefVIS(tiny("paper"))
    report = load_weights(model, tmp_path / "resnet.pth")
    assert report.source == "torchvision"
    body = {name for name in model.state_dict() if name.startswith("backbone.")}
    assert set(report.loaded) == body
    counters = {name for name in state if name.endswith("tracked")}
    assert set(report.skipped) == counters | {"fc.weight", "fc.bias"}
    assert "decoder.queries.table" in report.missing
    assert str(report) == (
        f"weights {tmp_path}/resnet.pth, a ResNet as torchvision names it:\n"
        f"  backbone: {len(body)} of {len(body)} entries\n"
        "  from random values, as the file has none: projection, encoder, queries, decoder, "
        "class heads, box heads, mask head\n"
        "  not used, the model has no such part: fc (2)"
    )
    stages = model.backbone.body.encoder.stages
    for block, convolution in ((0, 0), (1, 2)):
        layer = stages[1].layers[block].layer[convolution]
        name = f"layer2.{block}"
        assert layer.convolution.weight.equal(state[f"{name}.conv{convolution + 1}.weight"])
        running = state[f"{name}.bn{convolution + 1}.running_mean"]
        assert layer.normalization.running_mean.equal(running)
    shortcut = stages[3].layers[0].shortcut
    assert shortcut.convolution.weight.equal(state["layer4.0.downsample.0.weight"])


def test_whole_vistr_checkpoint(tmp_path: Path) -> None:
    state = vistr()
    model = DefVIS(tiny("vistr"))
    report = load_weights(model, saved(tmp_path / "vistr.pth", state))
    assert (report.source, report.skipped, report.missing) == ("vistr", {}, ())
    layer = model.decoder.layers[1]
    name = "vistr.transformer.decoder.layers.1"
    assert layer.self_norm.weight.equal(state[f"{name}.norm1.weight"])
    assert layer.cross_norm.weight.equal(state[f"{name}.norm2.weight"])
    cross = layer.cross_attention.attention
    assert cross.in_proj_weight.equal(state[f"{name}.multihead_attn.in_proj_weight"])
    # Query t * I + i of the file is slot i in frame t.
    expected = state["vistr.query_embed.weight"][2 * SLOTS + 1]
    assert model.decoder.queries.table[1, 2].equal(expected)
    # Class 0 is never used there; the last is no object in both.
    expected = state["vistr.class_embed.weight"][1:]
    assert model.decoder.class_heads[0].frame.weight.equal(expected)


def test_vistr_into_deformable_attention(tmp_path: Path) -> None:
    """Value and output projections fit; queries and keys have no place to go."""
    state = vistr()
    model = DefVIS(tiny("paper"))
    report = load_weights(model, saved(tmp_path / "vistr.pth", state))
    assert not report.skipped
    assert {name.split(".deform.")[-1] for name in report.missing} == {
        "sampling_offsets.weight", "sampling_offsets.bias", "attention_weights.weight",
        "attention_weights.bias", "decoder.queries.points.project.weight",
        "decoder.queries.points.project.bias",
    }  # fmt: skip
    attention = model.encoder.layers[0].attention.deform
    values = state["vistr.transformer.encoder.layers.0.self_attn.in_proj_weight"][2 * C :]
    assert attention.value_proj.weight.equal(values)


def test_released_encoder_into_frames_as_levels(tmp_path: Path) -> None:
    """Its levels are the frames and one more that is no frame."""
    state = vistr(frame_levels=FRAMES + 1)
    model = DefVIS(tiny("frames-as-levels"))
    report = load_weights(model, saved(tmp_path / "release.pth", state))
    assert (report.skipped, report.missing) == ({}, ())
    name = "vistr.transformer.encoder.layers.0.self_attn.sampling_offsets.bias"
    expected = state[name].view(HEADS, FRAMES + 1, 6, 2)[:, :FRAMES].flatten()
    assert model.encoder.layers[0].attention.deform.sampling_offsets.bias.equal(expected)


def test_levels_of_deformable_detr(tmp_path: Path) -> None:
    """Two of its four: those of the backbone's maps that this model uses."""
    state = deformable_detr(4)
    model = DefVIS(tiny("paper-c256", project_groups=8, levels=2, coarser_points=4))
    report = load_weights(model, saved(tmp_path / "detr.pth", state))
    assert not [name for name in report.missing if not name.startswith(("mask_", "decoder."))]
    assert model.level_position.equal(state["transformer.level_embed"][1:3])
    assert model.project_coarser[0][1].bias.equal(state["input_proj.2.1.bias"])
    name = "transformer.encoder.layers.1.self_attn.sampling_offsets.bias"
    theirs = state[name].view(HEADS, 4, 4, 2)[:, 1:3]
    layer = model.encoder.layers[1].attention.deform
    fine, coarse = layer.sampling_offsets.bias.view(HEADS, 16, 3).split([12, 4], dim=1)
    assert fine[..., :2].equal(theirs[:, 0, torch.arange(12) // 5])  # in turn, each over all t
    assert coarse[..., :2].equal(theirs[:, 1, torch.arange(4) // 3])
    assert [len(level[0, :, 2].unique()) for level in (fine, coarse)] == [5, 3]
    name = "transformer.encoder.layers.1.self_attn.attention_weights.bias"
    logits = state[name].view(HEADS, 4, 4)[:, 1:3]
    fine, coarse = layer.attention_weights.bias.view(HEADS, 16).split([12, 4], dim=1)
    assert fine.equal(logits[:, 0, torch.arange(12) // 5])
    # Three times as many points on the finer level do not attract more attention there.
    torch.testing.assert_close(coarse, logits[:, 1, torch.arange(4) // 3] + math.log(3))


def test_points_of_other_levels_are_not_taken(config: Config) -> None:
    """They would have the right shape in all, and be read on the wrong level."""
    backbone = 'model.backbone.out_features=["stem", "stage1", "stage2"]'
    made = changed(config, "model.levels=2", "model.num_points=6", backbone)
    state = DefVIS(made.model).state_dict()
    file = WeightsFile(Path("x.pt"), "defvis", state, config=made)
    other = changed(made, "model.num_points=8", "model.coarser_points=4")
    report = load_weights(DefVIS(other.model), file)
    assert set(report.skipped.values()) == {"of levels with 6 + 6 points, not 8 + 4"}
    assert set(report.missing) == set(report.skipped)
    assert not load_weights(DefVIS(made.model), file).skipped


def test_one_level_goes_where_it_was_made_from(tmp_path: Path) -> None:
    """VisTR's projection of the last stage becomes that of the coarser level."""
    state = vistr()
    model = DefVIS(tiny("vistr", levels=2))
    load_weights(model, saved(tmp_path / "vistr.pth", state))
    assert model.project_coarser[0][0].weight.equal(state["vistr.input_proj.weight"])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_report_knows_all_parts(name: str) -> None:
    with torch.device("meta"):
        state = DefVIS(preset(name).model).state_dict()
    report = LoadReport("defvis", "x", (), {}, tuple(state))
    assert "from random values, as the file has none: backbone, projection, " in str(report)


@pytest.mark.parametrize("levels", [1, 4])
def test_deformable_detr_inflates_to_three_axes(tmp_path: Path, levels: int) -> None:
    state = deformable_detr(levels)
    model = DefVIS(tiny("paper-c256", project_groups=8))
    report = load_weights(model, saved(tmp_path / "detr.pth", state))
    assert report.source == "deformable-detr"
    heads = {f"class_embed.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    other = {name for name in state if name.startswith("input_proj") and levels == 4}
    other -= {f"input_proj.2.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    level_embed = {"transformer.level_embed", "query_embed.weight"}
    assert set(report.skipped) == heads | other | level_embed
    assert report.skipped["class_embed.0.bias"] == (
        "has shape [91], but decoder.class_heads.0.frame.bias [6]"
    )
    told = {line.split(":")[0].strip(): line for line in str(report).splitlines()[1:]}
    assert "32 of 32 entries, 8 of them from sampling points in the frame" in told["encoder"]
    assert told["class heads"].endswith(" with rows for 91 classes in the file, 6 here")
    assert told["not used, the model has no such part"].count("level_embed (1)") == 1
    used = {name.split(".")[0] for name in report.missing}
    assert used == {"decoder", "mask_features", "mask_head"}
    assert not [n for n in report.missing if ".layers." in n], "all of the transformer is loaded"

    # Norms are numbered the other way round there.
    norm = model.decoder.layers[0].self_norm.weight
    assert norm.equal(state["transformer.decoder.layers.0.norm2.weight"])
    name = "transformer.encoder.layers.1.self_attn.sampling_offsets.bias"
    theirs = state[name].view(HEADS, levels, 4, 2)[:, 2 if levels == 4 else 0]
    ours = model.encoder.layers[1].attention.deform.sampling_offsets.bias.view(HEADS, 12, 3)
    assert ours[..., :2].equal(theirs[:, torch.arange(12) // 5])  # in turn, each over all t


@pytest.mark.parametrize("levels", [1, 4])
def test_inflated_attention_sees_a_still_video_as_the_image(tmp_path: Path, levels: int) -> None:
    """On a clip without motion, away from its ends, 3-D attention equals the 2-D it came from."""
    state = deformable_detr(levels)
    prefix = "transformer.encoder.layers.0.self_attn."
    theirs = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    theirs["sampling_offsets.weight"] *= 0.02
    model = DefVIS(tiny("paper", project_groups=8, num_points=20))  # 4 points x 5 moments
    load_weights(model, saved(tmp_path / "detr.pth", state))
    level = 2 if levels == 4 else 0  # of stride 32, as this model's cells are
    for name, value in theirs.items():
        if name.startswith(("sampling_offsets", "attention_weights")):
            theirs[name] = value.unflatten(0, (HEADS, levels, -1))[:, level].flatten(0, 1)
    image_layer = MSDeformAttn(C, 1, HEADS, 4)
    image_layer.load_state_dict(theirs)
    image, query, points = torch.randn(1, 20, C), torch.randn(1, 6, C), torch.rand(1, 6, 2)
    expected = image_layer(query, points, image, [(4, 5)])
    video = image.repeat(1, 9, 1)
    at_frame_4 = torch.cat((points, torch.full((1, 6, 1), 4.5 / 9)), dim=-1)
    layer = model.encoder.layers[0].attention.deform
    inflated = layer(query, at_frame_4, video, [(9, 4, 5)])
    torch.testing.assert_close(inflated, expected, atol=1e-4, rtol=1e-4)  # 5 times the summands


def test_own_checkpoint_and_safetensors(config: Config, tmp_path: Path) -> None:
    first, second = DefVIS(config.model), DefVIS(config.model)
    torch.save({"model": first.state_dict(), "step": 3}, tmp_path / "checkpoint.pt")
    report = load_weights(second, tmp_path / "checkpoint.pt")
    assert (report.source, report.skipped, report.missing) == ("defvis", {}, ())
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    third = DefVIS(config.model)
    load_weights(third, tmp_path / "weights.safetensors")
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert a.equal(b)
        assert a.equal(c)


def test_rows_of_other_classes_are_left_out(config: Config, tmp_path: Path) -> None:
    """Of as many classes with other names; the same names with other ids are the same classes."""
    first = DefVIS(config.model)
    categories = {"ids": [1, 2, 3], "names": ["cat", "dog", "cow"]}
    torch.save({"model": first.state_dict(), "categories": categories}, tmp_path / "run.pt")
    report = load_weights(
        DefVIS(config.model), tmp_path / "run.pt", ([1, 2, 3], ["cat", "car", "cow"])
    )
    rows = {"decoder.class_heads.0.frame.weight", "memory_classes.project.bias"}
    assert rows < set(report.skipped)
    assert set(report.missing) == set(report.skipped)
    assert len(report.skipped) == 2 * 3 + 2 * 2
    assert "class heads: 0 of 6 entries; 6 of other classes (class 1 is 'car'" in str(report)
    same = load_weights(
        DefVIS(config.model), tmp_path / "run.pt", ([5, 6, 7], ["cat", "dog", "cow"])
    )
    assert not same.skipped


@pytest.mark.parametrize(
    "categories",
    [{}, {"ids": [1]}, {"ids": 3, "names": ["a"]}, {"ids": [1], "names": ["a", "b"]}],
)
def test_categories_of_another_form_say_nothing(
    config: Config, tmp_path: Path, categories: dict[str, Any]
) -> None:
    first = DefVIS(config.model)
    torch.save({"model": first.state_dict(), "categories": categories}, tmp_path / "run.pt")
    report = load_weights(first, tmp_path / "run.pt", ([1, 2, 3], ["cat", "dog", "cow"]))
    assert not report.skipped


def test_entries_of_another_form_are_skipped(config: Config, tmp_path: Path) -> None:
    """Named as another project names its own, but of another shape or depth."""
    state = {"transformer.encoder.layers.0.linear1.bias": torch.zeros(32)}
    odd = {
        "bbox_embed.weight": torch.zeros(4),
        "bbox_embed.0.layers.9.bias": torch.zeros(4),
        "mask_head.lay1.weight": torch.zeros(4),
        "transformer.encoder.layers.0.self_attn.in_proj_weight": torch.tensor(1.0),
    }
    torch.save({**state, **odd}, tmp_path / "x.pth")
    report = load_weights(DefVIS(config.model), tmp_path / "x.pth")
    assert set(report.skipped) == set(odd)


def test_nothing_fits(config: Config, tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"nothing in .*other\.pth fits .* it has 'a.weight'"):
        load_weights(DefVIS(config.model), tmp_path / "other.pth")
    torch.save(resnet(), tmp_path / "resnet.pth")
    with pytest.raises(
        ValueError, match=r"holds a ResNet .* --set 'model\.backbone\.depths=\[1, 2"
    ):
        load_weights(DefVIS(Config().model), tmp_path / "resnet.pth")


def test_code_in_weights_does_not_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.pth", tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (witness,))

    torch.save({"model": Evil()}, path)
    with pytest.raises(RuntimeError, match=r"evil\.pth cannot be read: UnpicklingError"):
        read_weights(path)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["missing.pth", "broken.pth", "broken.safetensors"])
def test_unreadable_files(name: str, tmp_path: Path) -> None:
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(RuntimeError, match=f"{name} cannot be read"):
        read_weights(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(RuntimeError, match="must hold a state dict, got list"):
        read_weights(tmp_path / "list.pth")


def test_c256_takes_the_widths_of_deformable_detr() -> None:
    """The names and shapes of the published ResNet-50 model fit, except 91 classes of images."""
    with torch.device("meta"):
        model = DefVIS(preset("paper-c256").model)
    own = model.state_dict()
    deform = model.decoder.layers[5].cross_attention.deform
    assert (deform.embed_dim, deform.num_heads) == (256, 8)
    assert own["encoder.layers.5.feedforward.layers.0.weight"].shape == (1024, 256)
    assert own["project.0.weight"].shape == (256, 2048, 1, 1)
    assert model.project[1].num_groups == 32
    assert own["decoder.box_heads.5.delta.2.weight"].shape == (4, 256)


def test_frozen_parts_must_come_from_somewhere(tmp_path: Path) -> None:
    report = load_weights(DefVIS(tiny("paper")), saved(tmp_path / "x.pth", resnet()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_random_frozen_parts(BACKBONE, report)
        warn_of_random_frozen_parts(replace(BACKBONE, name="microsoft/resnet-50"), None)
        warn_of_random_frozen_parts(BackboneConfig(), None)
    heads_alone = replace(report, loaded=("decoder.norm.weight",))
    for nothing in (None, heads_alone):
        with pytest.warns(UserWarning, match="frozen at random values"):
            warn_of_random_frozen_parts(BACKBONE, nothing)
