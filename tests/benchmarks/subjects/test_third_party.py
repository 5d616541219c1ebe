"""Other libraries' operators beside ours: checked, timed, or named with the reason.

None of them is needed: made-up packages with their interfaces are installed instead.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.commands.operator import _default_variants
from benchmarks.gpu import third_party
from benchmarks.measure import processes
from benchmarks.measure.rows import Row
from benchmarks.subjects.base import Case, Implementation
from benchmarks.subjects.correctness import check_correctness
from benchmarks.subjects.registry import IMPLEMENTATIONS
from benchmarks.subjects.third_party import THIRD_PARTY
from benchmarks.workloads import DTYPES, WORKLOADS, make_inputs
from tests.benchmarks.gpu.test_stage import stage

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
DEFORMOPS = """
from core import attend

def msda(value, sizes, starts, locations, logits, *, method):
    assert (method, locations.dtype, logits.dtype) == ("softmax", value.dtype, value.dtype)
    weights = logits.float().softmax(-1).unflatten(-1, (len(sizes), -1))
    return attend(value.float(), sizes, starts, locations.float(), weights).to(value.dtype)
"""
TORCH = """
import torch
from core import attend

def ms_deform_attn(value, sizes, starts, locations, weights):
    assert value.dtype == locations.dtype == weights.dtype
    assert value.dtype in (torch.float32, torch.float64)
    return attend(value, sizes, starts, locations, weights)
"""
MMCV = """
from core import attend

class MultiScaleDeformableAttnFunction:
    @staticmethod
    def apply(value, sizes, starts, locations, weights, step):
        return attend(value, sizes, starts, locations, weights)
"""
FILES = {
    "deformops": ("deformops/registry.py", DEFORMOPS),
    "deformops-bfloat16": ("deformops/registry.py", DEFORMOPS),
    "deformable-detr": ("MultiScaleDeformableAttention.py", DETR),
    "mmcv": ("mmcv/ops/multi_scale_deform_attn.py", MMCV),
    "torch-ms-deform-attn": ("torch_ms_deform_attn.py", TORCH),
    "msda-triton": ("msda_triton/frontend.py", TRITON),
    "dcnv4": ("DCNv4/functions/flash_deform_attn_func.py", PACKED.format(more="")),
    "ops3d": ("ops3d/__init__.py", PACKED.format(more=", use_reg")),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are imported from; the modules are removed again."""
    (tmp_path / "core.py").write_text(CORE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = {"core", *(each.module.partition(".")[0] for each in THIRD_PARTY.values())}
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in made - {"transformers"}:
            del sys.modules[name]


def _install(name: str, folder: Path, change: tuple[str, str] = ("", "")) -> None:
    path, text = FILES[name]
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text.replace(*change) if change[0] else text)


def _find(name: str) -> tuple[list[Row], str]:
    answers = list(third_party.time_here(name, "cpu", quick=True, rounds=2))
    reasons = [answer["reason"] for answer in answers if "reason" in answer]
    return [answer for answer in answers if "reason" not in answer], "".join(reasons)


@pytest.mark.parametrize("name", FILES)
def test_what_is_installed_is_checked_and_timed_beside_ours(name: str, folder: Path) -> None:
    assert not THIRD_PARTY[name].is_installed
    _install(name, folder)
    assert THIRD_PARTY[name].is_installed
    found, reason = _find(name)
    assert reason == ""
    rows = [(row["variant"], row["mode"]) for row in found]
    modes = ("forward", "backward", "forward+backward")
    assert rows == [(variant, mode) for mode in modes for variant in ("native", name)]
    dtype = THIRD_PARTY[name].workload.dtype
    assert all(dtype in row["label"] for row in found)
    assert all(row["ratio"]["to"] == "native" for row in found)


@pytest.mark.parametrize("name", FILES)
def test_wrong_answers_are_not_timed(name: str, folder: Path) -> None:
    there = "out = attend" if name == "msda-triton" else "return attend"
    _install(name, folder, (there, there.replace("attend", "1.1 * attend")))
    rows, reason = _find(name)
    assert rows == []
    assert reason.startswith(f"WrongAnswerError: {name}: its result is ")


def test_wrong_gradients_leave_the_forward(folder: Path) -> None:
    change = ("grad(out, leaves, grad_out)", "grad(out, leaves, 2 * grad_out)")
    _install("deformable-detr", folder, change)
    rows, reason = _find("deformable-detr")
    assert reason.startswith("forward only: WrongAnswerError: deformable-detr: its grad")
    assert [row["mode"] for row in rows] == ["forward", "forward"]


def test_what_its_own_process_finds_is_read(folder: Path) -> None:
    _install("mmcv", folder, ("return attend", "return 1.1 * attend"))
    rows, reason = third_party._call("mmcv", stage(folder, "third-party"))
    assert rows == []
    assert reason.startswith("WrongAnswerError: mmcv: its result is ")


def test_what_is_not_installed_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "run", None)
    found = third_party._call("ops3d", stage(tmp_path, "third-party"))
    assert found == ([], "not installed")


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
def test_transformers_own_function_answers_as_ours() -> None:
    workload = replace(WORKLOADS["detr-encoder"].shrunk(), batch=2)
    check_correctness(
        workload, {"transformers": IMPLEMENTATIONS["transformers"].prepare(workload, 0)}
    )
    assert "transformers" in _default_variants()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_a_baseline_is_right(dtype: str, folder: Path) -> None:
    name = "torch-ms-deform-attn"
    _install(name, folder)
    workload = replace(WORKLOADS["detr-decoder"].shrunk(), dtype=dtype)
    assert IMPLEMENTATIONS[name].refusal(workload) == ""
    check_correctness(workload, {name: IMPLEMENTATIONS[name].prepare(workload, 0)})


def test_commands_take_a_baseline_only_where_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = IMPLEMENTATIONS["transformers"]

    def prepare(*_: object) -> Case:
        raise AssertionError("it is for images")

    monkeypatch.setitem(IMPLEMENTATIONS, "transformers", replace(right, prepare=prepare))
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


@pytest.mark.parametrize(
    ("name", "cells_at_most"), [("deformops-bfloat16", 0.9), ("dcnv4", 0.1), ("ops3d", 0.6)]
)
def test_locations_that_a_narrow_dtype_has(name: str, cells_at_most: float) -> None:
    workload = replace(THIRD_PARTY[name].workload, num_object_queries=50)
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
    assert 0 < moved < cells_at_most
    assert workload.label.endswith(f", locations in {workload.exact_in}")


def test_gradients_are_judged_in_the_dtype_they_pass_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workload = replace(WORKLOADS["tiny"], dtype="bfloat16", exact_in="bfloat16")

    def prepare(workload: object, seed: int) -> Case:
        right = IMPLEMENTATIONS["composite"].prepare(workload, seed)  # type: ignore[arg-type]

        def attend(value, points, offsets, logits):
            return right.function(value, points, offsets, logits.to(value.dtype).float())

        return right._replace(function=attend)

    for dtype in (None, torch.bfloat16):
        narrow = Implementation("narrow", prepare, gradients_in=dtype)
        monkeypatch.setitem(IMPLEMENTATIONS, "narrow", narrow)
        cases = {"narrow": prepare(workload, 0)}
        check_correctness(workload, cases, gradients=False)
        if dtype:
            check_correctness(workload, cases)
        else:
            with pytest.raises(RuntimeError, match="gradient of attention_logits"):
                check_correctness(workload, cases)
