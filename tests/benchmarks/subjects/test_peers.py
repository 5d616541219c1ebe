"""Other libraries' operators beside ours: found, built, checked, timed; or named with the reason.

None of them is needed: packages with their interfaces, made up here, stand in for them.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.commands.operator import _default_variants
from benchmarks.subjects import peer_check, peers
from benchmarks.subjects.answers import check_answers
from benchmarks.subjects.prepared import Prepared, Variant
from benchmarks.subjects.variants import VARIANTS
from benchmarks.workloads import DTYPES, WORKLOADS, make_inputs

pytestmark = pytest.mark.usefixtures("needs_native")

# What all of them compute, level by level, the value's cells found by the levels' starts.
CORE = """
import math
import torch
from stdeform.testing import composite

def attend(value, sizes, starts, locations, weights):
    out = 0
    for l, (size, start) in enumerate(zip(sizes.tolist(), starts.tolist())):
        cells = value[:, start : start + math.prod(size)]
        out = out + composite(cells, [size], locations[:, :, :, l : l + 1], weights[..., l : l + 1, :])
    return out

def attend_packed(value, sizes, starts, packed, points):
    axes, samples = sizes.shape[1], len(sizes) * points
    locations, logits = packed.float().split([samples * axes, samples], -1)
    weights = logits.softmax(-1).unflatten(-1, (len(sizes), points))
    locations = locations.unflatten(-1, (len(sizes), points, axes))
    assert points <= 8
    return attend(value.float(), sizes, starts, locations, weights).to(value.dtype)
"""  # noqa: E501
PACKED = """
from core import attend_packed

class FlashDeformAttnFunction:
    @staticmethod
    def apply(value, sizes, starts, packed, step, points{more}):
        return attend_packed(value, sizes, starts, packed, points)
"""
DETR = """
import torch
from core import attend

def ms_deform_attn_forward(value, sizes, starts, locations, weights, step):
    return attend(value, sizes, starts, locations, weights)

def ms_deform_attn_backward(value, sizes, starts, locations, weights, grad_out, step):
    leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
    with torch.enable_grad():
        out = attend(leaves[0], sizes, starts, *leaves[1:])
    return torch.autograd.grad(out, leaves, grad_out)
"""
TRITON = """
import torch
from core import attend

def triton_multiscale_deformable_attention(img, sizes, points, weights, padding_mode, align_corners):
    assert (padding_mode, align_corners) == ("zeros", False)
    ends = sizes.prod(1).cumsum(0)
    out = attend(img, sizes, ends - sizes.prod(1), points, weights)
    return out.unflatten(-1, img.shape[2:])
"""  # noqa: E501
MMCV = """
from core import attend

class MultiScaleDeformableAttnFunction:
    @staticmethod
    def apply(value, sizes, starts, locations, weights, step):
        return attend(value, sizes, starts, locations, weights)
"""
# Builds what nothing imports: beside it lies the module in Python.
SETUP = """
import pathlib, sys
name = "{extension}"
target = pathlib.Path(sys.argv[sys.argv.index("--build-lib") + 1], *name.split("."))
target.parent.mkdir(parents=True)
target.with_suffix(".made-up.so").touch()
"""
FILES = {
    "deformable-detr": {
        "detr/models/ops/setup.py": SETUP.format(extension="MultiScaleDeformableAttention"),
        "detr/models/ops/MultiScaleDeformableAttention.py": DETR,
    },
    "mmcv": {
        "mmcv/mmcv/__init__.py": "",
        "mmcv/mmcv/ops/multi_scale_deform_attn.py": MMCV,
    },
    "msda-triton": {
        "msda-triton/src/msda_triton/__init__.py": "",
        "msda-triton/src/msda_triton/frontend.py": TRITON,
    },
    "dcnv4": {
        "DCNv4/DCNv4_op/setup.py": SETUP.format(extension="DCNv4.ext"),
        "DCNv4/DCNv4_op/DCNv4/functions/flash_deform_attn_func.py": PACKED.format(more=""),
    },
    "ops3d": {
        "ops3d/setup.py": SETUP.format(extension="ops3d._C"),
        "ops3d/ops3d/__init__.py": PACKED.format(more=", use_reg"),
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of peers; what is imported from there is forgotten again."""
    (tmp_path / "core.py").write_text(CORE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = set(sys.modules)
    yield tmp_path / "peers"
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    for name in ("mmcv", "mmcv.ops", "DCNv4", "DCNv4.functions", "msda_triton", "ops3d"):
        sys.modules.pop(name, None)


def _write(name: str, folder: Path, change: tuple[str, str] = ("", "")) -> None:
    for path, text in FILES[name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text.replace(*change) if change[0] else text)


def _find(name: str, folder: Path) -> peer_check.Finding:
    return peer_check._find(name, folder, "cpu", 2, quick=True)


@pytest.mark.parametrize("name", FILES)
def test_a_peer_beside_the_checkout_is_built_checked_and_timed(name: str, folder: Path) -> None:
    _write(name, folder)
    finding = _find(name, folder)
    assert finding["reason"] == ""
    rows = [(row["variant"], row["mode"]) for row in finding["rows"]]
    modes = ("forward", "backward", "forward+backward")
    assert rows == [(variant, mode) for mode in modes for variant in ("native", name)]
    dtype = peers.PEERS[name].workload.dtype
    assert all(dtype in row["label"] for row in finding["rows"])
    assert all(row["ratio"]["to"] == "native" for row in finding["rows"])
    built = [path.name for path in folder.rglob("*.made-up.so")]
    assert bool(built) == bool(peers.PEERS[name].extension)


@pytest.mark.parametrize("name", FILES)
def test_a_peer_that_answers_wrongly_is_not_timed(name: str, folder: Path) -> None:
    there = "out = attend" if name == "msda-triton" else "return attend"
    _write(name, folder, (there, there.replace("attend", "1.1 * attend")))
    finding = peer_check.check_peer(
        name, folder, "cpu", rounds=2, quick=True, seconds=120
    )  # in a process of its own
    assert finding["rows"] == []
    assert finding["reason"].startswith(f"WrongAnswerError: {name}: its result is ")


def test_a_peer_whose_gradients_are_wrong_is_timed_forward(folder: Path) -> None:
    _write("deformable-detr", folder, ("return torch.autograd.grad(", "return (2 * g for g in "))
    path = folder / "detr/models/ops/MultiScaleDeformableAttention.py"
    path.write_text(
        path.read_text().replace("(2 * g for g in out", "(2 * g for g in torch.autograd.grad(out")
        + ")"
    )
    finding = _find("deformable-detr", folder)
    assert finding["reason"].startswith("forward only: WrongAnswerError: deformable-detr: its grad")
    assert [row["mode"] for row in finding["rows"]] == ["forward", "forward"]


def test_a_peer_that_does_not_build_is_named_with_what_the_build_said(folder: Path) -> None:
    _write("dcnv4", folder)
    setup = folder / "DCNv4/DCNv4_op/setup.py"
    setup.write_text(f"# {setup.read_text()!r}\nraise SystemExit('x.cu(3): error: no such type')")
    with pytest.raises(RuntimeError, match=r"does not build: x\.cu\(3\): error: no such type"):
        peers.bring("dcnv4", folder)


@pytest.mark.slow
def test_a_peer_that_crashes_or_hangs_is_a_reason_and_no_more(folder: Path) -> None:
    _write("mmcv", folder, ("from core import attend", "import os; os.abort()"))
    finding = peer_check.check_peer("mmcv", folder, "cpu", rounds=2, quick=True, seconds=120)
    assert finding["rows"] == []
    assert finding["reason"]
    # As a build does, it waits for another process.
    slow = f"import subprocess; subprocess.run(['sh', '-c', 'sleep 6; touch {folder}/late'])"
    _write("mmcv", folder, ("from core import attend", slow))
    start = time.monotonic()
    finding = peer_check.check_peer("mmcv", folder, "cpu", rounds=2, quick=True, seconds=5)
    assert finding == {"rows": [], "reason": "stopped after 5 s"}
    time.sleep(max(0, 13 - (time.monotonic() - start)))
    assert not (folder / "late").exists()


def test_a_peer_that_is_stopped_keeps_its_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write("mmcv", folder)

    def run(command: list[str], seconds: float, log: Path) -> None:
        log.write_text('chatter\npeer-check: {"rows": [{"mode": "forward"}]}\n')

    monkeypatch.setattr(peer_check.processes, "run", run)
    finding = peer_check.check_peer("mmcv", folder, "cpu", rounds=2, quick=True, seconds=9)
    assert finding == {"rows": [{"mode": "forward"}], "reason": "stopped after 9 s"}


def test_a_peer_that_is_nowhere_starts_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_check.processes, "run", None)
    finding = peer_check.check_peer("ops3d", folder, "cpu", rounds=2, quick=True, seconds=9)
    assert finding == {"rows": [], "reason": "neither installed nor below peers/"}


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
def test_transformers_own_function_answers_as_ours() -> None:
    workload = replace(WORKLOADS["detr-encoder"].shrunk(), batch=2)
    check_answers(workload, {"transformers": VARIANTS["transformers"].prepare(workload, 0)})
    assert "transformers" in _default_variants()


def test_commands_take_a_peer_only_where_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = VARIANTS["transformers"]

    def prepare(*_: object) -> Prepared:
        raise AssertionError("it is for images")

    monkeypatch.setitem(VARIANTS, "transformers", replace(right, prepare=prepare))
    chosen = ["--measure", "latency", "--rounds", "1", "--variants"]
    assert main(["operator", "tiny", *chosen, "native", "transformers"]) == 0
    said = capsys.readouterr().out
    assert "| transformers" not in said
    reason = "it has no operator for 3 axes"
    assert f"-- tiny, float32: transformers is left out, {reason}" in said
    with pytest.raises(SystemExit, match=f"transformers cannot do tiny, float32: {reason}"):
        main(["operator", "tiny", *chosen, "transformers"])
    with pytest.raises(
        SystemExit, match="--measure overhead: transformers cannot do four-elements"
    ):
        main(["operator", "detr-encoder", "--measure", "overhead", "--variants", "transformers"])


@pytest.mark.parametrize("name", ["dcnv4", "ops3d"])
def test_locations_that_a_narrow_dtype_has(name: str) -> None:
    workload = replace(peers.PEERS[name].workload, num_object_queries=50)
    assert workload.exact_in
    inputs, dtype = make_inputs(workload, 0), DTYPES[workload.exact_in]
    sizes = torch.tensor([shape[::-1] for shape in workload.spatial_shapes])[:, None]
    locations = inputs.reference_points[:, :, None, :, None] + inputs.sampling_offsets / sizes
    rounded = locations.to(dtype).float()
    assert (rounded - locations).abs().max() < 2e-7
    cells = rounded * sizes - 0.5
    assert (cells - cells.round()).abs().min() > 0.9e-3
    torch.testing.assert_close(
        inputs.attention_logits.to(dtype).float(), inputs.attention_logits, rtol=0, atol=0
    )
    usual = make_inputs(replace(workload, exact_in=None), 0)
    moved = (inputs.sampling_offsets - usual.sampling_offsets).abs().max()
    assert 0 < moved < (0.1 if name == "dcnv4" else 0.6)
    assert workload.label.endswith(f", locations in {workload.exact_in}")


def test_gradients_are_judged_in_the_dtype_they_pass_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workload = replace(WORKLOADS["tiny"], dtype="bfloat16", exact_in="bfloat16")

    def prepare(workload: object, seed: int) -> Prepared:
        right = VARIANTS["composite"].prepare(workload, seed)  # type: ignore[arg-type]

        def attend(value, points, offsets, logits):
            return right.function(value, points, offsets, logits.to(value.dtype).float())

        return right._replace(function=attend)

    for dtype in (None, torch.bfloat16):
        variant = Variant("narrow", True, prepare, gradients_in=dtype)
        monkeypatch.setitem(VARIANTS, "narrow", variant)
        prepared = {"narrow": prepare(workload, 0)}
        check_answers(workload, prepared, gradients=False)
        if dtype:
            check_answers(workload, prepared)
        else:
            with pytest.raises(RuntimeError, match="gradient of attention_logits"):
                check_answers(workload, prepared)
