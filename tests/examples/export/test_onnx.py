"""export_defvis.py to ONNX, and infer_defvis.py and evaluate_defvis.py with its file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from defvis.data import rle
from defvis.export.onnx_model import OnnxModel, load_onnx
from defvis.training.load_trained import load_trained
from tests.examples.support import program, tiny_model

pytestmark = pytest.mark.slow
export, infer, evaluate = map(program, ("export_defvis", "infer_defvis", "evaluate_defvis"))


def test_standard_operations_of_any_size(onnx_file: Path, tiny_run: Path) -> None:
    import onnx

    graph = onnx.load(onnx_file).graph
    assert {node.domain for node in graph.node} <= {""}
    assert "GridSample" not in {node.op_type for node in graph.node}, "slow over volumes"
    sizes = [
        [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input
    ]
    assert sizes[0] == ["batch", "time", 3, "height", "width"]
    assert all(isinstance(size, str) for size in sizes[1])
    exported, trained = load_onnx(onnx_file), load_trained(tiny_run)
    assert (exported.config, exported.category_ids) == (trained.config, trained.category_ids)
    assert exported.category_names == trained.category_names
    for shape in ((1, 1, 3, 1, 1), (3, 5, 3, 31, 70)):
        frames = torch.randn(shape)
        for found, wanted in zip(
            exported.model.predict(frames, None), trained.model.predict(frames), strict=True
        ):
            # Float32 in another order, through a few layers.
            torch.testing.assert_close(
                found, wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max()))
            )


def test_infer_gives_what_the_run_gives(
    onnx_file: Path, tiny_run: Path, source: Path, tmp_path: Path
) -> None:
    results = []
    for words in (["--run", str(tiny_run)], ["--onnx", str(onnx_file)]):
        out = tmp_path / words[0].lstrip("-")
        # Clips of three of the four frames: they overlap and are linked.
        infer([*words, "--source", str(source), "--out", str(out), "--window", "3",
               "--threshold", "0"])  # fmt: skip
        assert (out / "overlay.webp").stat().st_size > 0
        assert (out / "sheet.png").stat().st_size > 0
        results.append(json.loads((out / "results.json").read_text()))
    assert _drawn(results[0]), "nothing to compare"
    _assert_same(*results)


def test_evaluate_gives_the_figures_of_the_run(
    onnx_file: Path, tiny_run: Path, digits: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "results.json"
    evaluate(["--data", str(digits / "val"), "--onnx", str(onnx_file), "--out", str(out)])
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert f"{'AP50':6s} {metrics['AP50']:.4f}" in capsys.readouterr().out
    _assert_same(json.loads((tiny_run / "results.json").read_text()), json.loads(out.read_text()))


def test_a_file_that_differs_fails(
    onnx_file: Path, tiny_run: Path, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A weight of the offsets is changed by a hundredth."""
    import onnx
    from onnx import numpy_helper

    broken = onnx.load(onnx_file)
    (bias,) = (
        weight
        for weight in broken.graph.initializer
        if "encoder" in weight.name and weight.name.endswith("sampling_offsets.bias")
    )
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.01, bias.name))

    def write(_trained: object, path: Path, _form: object) -> int:
        onnx.save(broken, path)
        return 1

    monkeypatch.setattr("defvis.export.to_onnx.write_onnx", write)
    words = ["--run", str(tiny_run), "--source", str(source), "--out", str(tmp_path / "x.onnx")]
    with pytest.raises(SystemExit, match=r"differs by more than 0\.0001 of the largest value"):
        export(words)
    assert "1 x 4 x 48 x 64: probabilities" in capsys.readouterr().out


def test_files_that_cannot_be_used(
    onnx_file: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    words = ["--source", str(source), "--out", str(tmp_path / "out"), "--onnx"]
    with pytest.raises(SystemExit, match=r"there is no file .*missing\.onnx"):
        infer([*words, str(tmp_path / "missing.onnx")])
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(SystemExit, match=r"ONNX Runtime cannot read .*text\.onnx"):
        infer([*words, str(tmp_path / "text.onnx")])
    foreign = onnx.load(onnx_file)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(SystemExit, match="was not written by export_defvis"):
        infer([*words, str(tmp_path / "foreign.onnx")])
    for metadata, message in (
        ("[]", "was not written by export_defvis"),
        ("[" * 100000, "was not written by export_defvis"),
        ('{"config": {}, "category_ids": ["a"], "category_names": ["a"]}', "must have ids of 10"),
        ('{"config": {"wings": 2}, "category_ids": [], "category_names": []}', "no field 'wings'"),
    ):
        onnx.helper.set_model_props(foreign, {"defvis": metadata})
        onnx.save(foreign, tmp_path / "foreign.onnx")
        with pytest.raises(SystemExit, match=message):
            infer([*words, str(tmp_path / "foreign.onnx")])
    foreign = onnx.load(onnx_file)
    foreign.graph.output.pop()
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(SystemExit, match="has inputs and outputs"):
        infer([*words, str(tmp_path / "foreign.onnx")])
    for option in (["--points", "decoder:0:0"], ["--precision", "bf16"]):
        with pytest.raises(SystemExit, match="2"):
            infer([*words, str(onnx_file), *option])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(SystemExit, match="need ONNX Runtime: pip install onnxruntime"):
        infer([*words, str(onnx_file)])
    with pytest.raises(SystemExit, match="pip install onnx onnxscript onnxruntime"):
        export(["--run", "x", "--source", "y", "--out", "z"])


def test_exports_that_cannot_be_written_are_refused_first(tiny_run: Path, source: Path) -> None:
    words = ["--run", str(tiny_run), "--source", str(source), "--out"]
    for out in ([str(source)], ["x.onnx", "--format", "aoti"]):
        with pytest.raises(SystemExit, match="2"):
            export([*words, *out])
    with pytest.raises(SystemExit, match="export_defvis: cannot write to /proc: "):
        export([*words, "/proc/x.onnx"])


def test_another_number_of_frames_than_a_file_has_weights_for() -> None:
    session: Any = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(shape=["batch", 4, 3])])
    with pytest.raises(ValueError, match="takes clips of 4 frames, got 5"):
        OnnxModel(session, tiny_model()).predict(torch.zeros(1, 5, 3, 8, 8), None)


def _drawn(results: list[dict[str, Any]]) -> int:
    return sum(mask is not None for result in results for mask in result["segmentations"])


def _assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """The same results in the same order, up to rounding."""
    assert [r["category_id"] for r in ours] == [r["category_id"] for r in theirs]
    np.testing.assert_allclose(
        [r["score"] for r in theirs], [r["score"] for r in ours], rtol=0, atol=1e-5
    )
    for one, other in zip(ours, theirs, strict=True):
        for masks in zip(one["segmentations"], other["segmentations"], strict=True):
            assert [mask is None for mask in masks] in ([True, True], [False, False])
            if masks[0] is not None:
                pixels = [rle.decode(rle.to_rle(mask, *mask["size"])) for mask in masks]
                assert (pixels[0] != pixels[1]).mean() < 1e-3  # a logit that rounds across zero
