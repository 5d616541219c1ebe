"""What reads checkpoints, files of weights and ONNX files."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from defvis.config import BackboneConfig, Config, ModelConfig
from defvis.evaluation.journal import KeptJournal
from defvis.export.onnx_model import load_onnx
from defvis.models.model import DefVIS
from defvis.pretrained.checkpoint_file import load_checkpoint
from defvis.pretrained.fit import fit_config
from defvis.pretrained.tensor_file import CheckpointError
from defvis.pretrained.weights import load_weights
from defvis.training.load_trained import load_trained
from tests.examples.fuzz.hostile import VALUES, Choices, mutated

_TENSORS = [
    torch.zeros(()), torch.zeros(0), torch.zeros(1), torch.zeros(4, 4), torch.zeros(8, 2, 3),
    torch.full((8,), float("nan")), torch.zeros(8, dtype=torch.complex64),
    torch.zeros(8, dtype=torch.int8), torch.zeros(8, dtype=torch.bool), torch.zeros(24, 24, 1, 1),
]  # fmt: skip
# Sizes of a model that would be built before they are compared are left out: they only fill memory.
_SMALL = [v for v in VALUES if not (isinstance(v, int) and abs(v) > 255)] + _TENSORS


@functools.cache
def _config() -> Config:
    backbone = BackboneConfig(embedding_size=4, hidden_sizes=(4, 4), depths=(1, 1))
    return Config(
        model=ModelConfig(
            backbone=backbone, num_classes=2, num_frames=2, num_slots=2, embed_dim=12, num_heads=2,
            num_points=2, encoder_layers=1, decoder_layers=1, feedforward_dim=4, mask_dim=8,
            project_groups=0,
        )
    )  # fmt: skip


@functools.cache
def _model() -> DefVIS:
    return DefVIS(_config().model)


@functools.cache
def _saved() -> dict[str, Any]:
    return {
        "config": _config().to_dict(),
        "model": dict(_model().state_dict()),
        "state": {"average": None},
        "categories": {"ids": [3, 40], "names": ["lizard", "racket"]},
    }


def _bytes_of(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@functools.cache
def _small() -> bytes:
    """A checkpoint of one tensor: what is in the pickle does not depend on how many there are."""
    return _bytes_of({**_saved(), "model": {"weight": torch.zeros(2, 3)}})


def _edited(whole: bytes, choices: Choices) -> bytes:
    """Bytes with a few replaced, perhaps cut off."""
    edited = bytearray(whole)
    for _ in range(choices.number(8)):
        edited[choices.number(65536) % len(edited)] = choices.number(256)
    if choices.number(4) == 3:
        del edited[choices.number(65536) % len(edited) :]
    return bytes(edited)


def _with_pickle(whole: bytes, choices: Choices) -> bytes:
    """A checkpoint with other bytes in its pickle, and right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = _edited(content, choices) if choices.number(2) else choices.left
            new.writestr(entry.filename, content)
    return out.getvalue()


def _file(data: bytes, content: Any, folder: Path) -> Path:
    """Writes changed content, a changed pickle, changed bytes, or the bytes alone."""
    choices = Choices(data)
    how = choices.number(4)
    if how == 0:
        made = _bytes_of(mutated(content, choices, _SMALL))
    elif how == 1:
        made = _with_pickle(_small(), choices)
    elif how == 2:
        made = _edited(_small(), choices)
    else:
        made = choices.left
    path = folder / "file.pt"
    path.write_bytes(made)
    return path


def checkpoint(data: bytes, folder: Path) -> None:
    """`load_checkpoint` and `load_trained`."""
    path = _file(data, _saved(), folder)
    with contextlib.suppress(CheckpointError):
        assert isinstance(load_checkpoint(path), dict)
    with contextlib.suppress(CheckpointError):
        trained = load_trained(path)
        assert len(trained.category_ids) == len(trained.category_names)
        assert len(trained.category_ids) == trained.config.model.num_classes
        assert all(type(number) is int for number in trained.category_ids)
        assert all(type(name) is str for name in trained.category_names)


# Beginnings and ends of names in the files of other projects.
_NAMES = [
    "layer1.0.conv1.weight", "transformer.level_embed", "transformer.reference_points.weight",
    "transformer.encoder.layers.0.self_attn.sampling_offsets.bias", "query_embed.weight",
    "transformer.decoder.layers.0.cross_attn.attention_weights.weight", "bbox_embed.0.layers.9.x",
    "transformer.decoder.layers.0.multihead_attn.in_proj_weight", "bbox_embed.weight",
    "input_proj.0.0.weight", "input_proj.x.0.bias", "input_proj.weight", "class_embed.bias",
    "backbone.0.body.layer1.0.downsample.0.weight", "backbone.0.body.conv1.weight",
    "mask_head.lay1.weight", "mask_head.lay1.bias", "bbox_attention.k_linear.weight",
    "transformer.encoder.layers.0.norm9.weight", "transformer.decoder.norm.bias", "class_embed.7.x",
    "module.vistr.detr.class_embed.weight", "insmask_head.9.weight", "bbox_embed.layers.0.weight",
]  # fmt: skip


def weights(data: bytes, folder: Path) -> None:
    """`fit_config` and `load_weights` on entries of other projects, and on broken files."""
    choices = Choices(data)
    state: dict[str, Any] = {}
    for _ in range(choices.number(6)):
        shape = [choices.pick((0, 1, 2, 4, 8, 12, 24)) for _ in range(choices.number(5))]
        state[choices.pick(_NAMES)] = torch.zeros(shape)
    content: Any = {"model": state} if choices.number(2) else {**_model().state_dict(), **state}
    path = _file(choices.left, content, folder)
    with contextlib.suppress(CheckpointError, ValueError):
        fit_config(_config(), path)
    with contextlib.suppress(CheckpointError, ValueError):
        report = load_weights(_model(), path)
        assert report.loaded
        str(report)


def _onnx(metadata: str) -> bytes:
    """A model with the inputs and outputs of an exported one; it copies its frames."""
    onnx = importlib.import_module("onnx")  # which not every machine has
    make, kind = onnx.helper, onnx.TensorProto
    frames = make.make_tensor_value_info("frames", kind.FLOAT, ["b", "t", 3, "h", "w"])
    padding = make.make_tensor_value_info("padding_mask", kind.BOOL, ["b", "t", "h", "w"])
    names = ("probabilities", "boxes", "mask_logits")
    nodes = [make.make_node("Identity", ["frames"], [name]) for name in names]
    outs = [make.make_tensor_value_info(name, kind.FLOAT, None) for name in names]
    graph = make.make_graph(nodes, "g", [frames, padding], outs)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    make.set_model_props(model, {"defvis": metadata})
    return bytes(model.SerializeToString())


def onnx_file(data: bytes, folder: Path) -> None:
    """`load_onnx` on changed metadata and changed bytes."""
    choices = Choices(data)
    metadata: Any = {
        "config": _config().to_dict(), "category_ids": [3, 40], "category_names": ["lizard", "b"],
    }  # fmt: skip
    how = choices.number(3)
    text = json.dumps(mutated(metadata, choices) if how == 0 else metadata)
    if how == 1:
        text = text[: choices.number(65536)] + choices.left.decode("latin-1")
    made = _onnx(text)
    path = folder / "file.onnx"
    path.write_bytes(_edited(made, choices) if how == 2 else made)
    with contextlib.suppress(CheckpointError, ValueError):
        trained = load_onnx(path)
        assert len(trained.category_ids) == len(trained.category_names)
        assert len(trained.category_ids) == trained.config.model.num_classes
        assert all(type(number) is int for number in trained.category_ids)
        assert all(type(name) is str for name in trained.category_names)


def journal(data: bytes, folder: Path) -> None:
    """The record of an interrupted prediction, changed."""
    choices = Choices(data)
    agreed = {"model": "abc", "frames": 12}
    line = b'{"a": 1}\n'
    record = {"agreed": agreed, "length": len(line), "state": {"tensor": torch.zeros(2)}}
    (folder / "finished.jsonl").write_bytes(line * choices.number(4))
    _file(choices.left, record, folder).replace(folder / "state.pt")
    with contextlib.suppress(ValueError), KeptJournal(folder, agreed, resume=True) as kept:
        assert isinstance(kept.saved, dict)
        for place, value in kept:
            assert kept.read(place) == value


TARGETS = {"checkpoint": checkpoint, "weights": weights, "onnx": onnx_file, "journal": journal}
