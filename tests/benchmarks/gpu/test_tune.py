"""Tuning in `gpu-check`: variants apply and compile, all are timed, the winner is reported."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu import kernel_variants, tune, variant_build
from benchmarks.gpu.kernel_variants import BACKWARD, FORWARD, KNOBS, VARIANTS
from benchmarks.gpu.stage import RESULTS
from benchmarks.measure import kernel_times
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import Row
from benchmarks.subjects.registry import IMPLEMENTATIONS as OPERATORS
from benchmarks.workloads import WORKLOADS
from stdeform import _native
from tests.benchmarks.gpu.test_run_tests import stage

ROOT = Path(__file__).parents[3]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

# -- what is tried -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.slug)
def test_a_variant_changes_the_present_sources(variant: kernel_variants.KernelVariant) -> None:
    changed = variant.files()  # raises where a line is gone
    for file, text in changed.items():
        before = (ROOT / "csrc" / "cuda" / file).read_text()
        assert len(text.splitlines()) == len(before.splitlines())
        assert variant.text in text


def test_a_line_that_is_gone_is_told() -> None:
    gone = kernel_variants.KernelVariant("gone", FORWARD, "kNoSuchThing", "")
    with pytest.raises(ValueError, match=r"csrc/cuda/\*\.\* has nothing like kNoSuchThing"):
        gone.files()


def test_what_is_there_anyway_is_no_variant() -> None:
    params = (ROOT / "csrc" / "cuda" / "params.h").read_text()
    there = re.search(r"int kForwardWarps = (\d+);", params)
    assert there
    same = kernel_variants._constant("kForwardWarps", FORWARD, there[1])
    assert same.files() == {}


def test_every_knob_is_a_field() -> None:
    tuning = (ROOT / "csrc" / "cuda" / "params.h").read_text()
    for knob in KNOBS:
        assert f"int64_t {knob.name} = -1;" in tuning
        assert knob.mode in (FORWARD, BACKWARD)


# The kernels that variants are about, and a launch.
SOME_KERNELS = """
#include "cuda/launch.cuh"
#include "cuda/zero.cu"
namespace stdeform::cuda {
template __global__ void forward_kernel<BFloat16, 3, VectorLayout<48, 8>>(
    const __grid_constant__ KernelParams, TilePartition);
template __global__ void bin_backward_kernel<float, 3, BinLayout<3, 48>>(
    const __grid_constant__ KernelParams, const __grid_constant__ Bins, int);
}
"""


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [each for each in VARIANTS if each.files()], ids=lambda variant: variant.slug
)
def test_a_variant_compiles(variant: kernel_variants.KernelVariant, tmp_path: Path) -> None:
    """Some of its kernels; `variants` of gpu-check builds and links all of two dtypes."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for file, text in variant.files().items():
        (tmp_path / "csrc" / "cuda" / file).write_text(text)
    source = tmp_path / "kernels.cu"
    source.write_text(SOME_KERNELS)
    flags = ["-std=c++17", "-O1", f"-I{tmp_path / 'csrc'}", "-arch=sm_90", "-cubin"]
    command = [str(NVCC), *flags, str(source), "-o", str(tmp_path / "cubin")]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


PLAN = """builddir = build/native
rule compile
  command = $tool
rule link
  command = $tool
build build/native/csrc/bindings.cpp.o: compile csrc/bindings.cpp
  tool = g++
  flags = -Icsrc
build build/native/csrc/cuda/inst_f32.cu.o: compile csrc/cuda/inst_f32.cu
  tool = nvcc
  flags = -O3 -Icsrc
build build/native/csrc/cuda/inst_f64.cu.o: compile csrc/cuda/inst_f64.cu
  tool = nvcc
  flags = -O3 -Icsrc
build build/native/_C.so: link build/native/csrc/bindings.cpp.o build/native/inst_f32.cu.o
  tool = g++
  flags = -lrt
"""


def test_a_variant_is_built_as_the_module_is_with_its_own_kernels_first() -> None:
    text = variant_build._steps(variant_build._STEP.findall(PLAN), Path("/some/place"))
    assert text == (
        "build /some/place/inst_f32.cu.o: compile /some/place/csrc/cuda/inst_f32.cu\n"
        "  tool = nvcc\n  flags = -O3 -I/some/place/csrc -Xptxas=-v\n"
        "build /some/place/_C.so: link /some/place/inst_f32.cu.o"
        " build/native/csrc/bindings.cpp.o build/native/csrc/cuda/inst_f64.cu.o\n"
        "  tool = g++\n  flags = -lrt\n"
    )


def test_without_a_build_there_are_no_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variant_build, "ROOT", tmp_path)
    this = stage(tmp_path, "variants", device="cuda")
    assert not tune.build_variants(this)
    assert this.record.read()["notes"] == [
        "variants need the objects of an in-place build with CUDA"
    ]


def test_kernels_that_spill_are_counted() -> None:
    said = (
        "[1/3] compile /b/variants/one/csrc/cuda/inst_f32.cu\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "    40 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads\n"
        "[2/3] compile /b/variants/one/csrc/cuda/inst_bf16.cu\n"
        "    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads\n"
        "[3/3] compile /b/variants/two/csrc/cuda/inst_f32.cu\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    )
    assert variant_build.spills(said) == {"one": 2}


def _rows(folder: Path) -> list[Row]:
    return load_rows([folder / RESULTS])


# -- times ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("needs_native")
def test_another_module_is_called_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = _native._C
    assert installed is not None
    called = []
    other = ModuleType("other")
    vars(other).update(vars(installed))

    def cpu_forward(*arguments: Any) -> None:
        called.append(_native.options.cuda_tuning)
        installed.cpu_forward(*arguments)

    other.cpu_forward = cpu_forward  # type: ignore[attr-defined]
    run = OPERATORS["native"].prepare(WORKLOADS["tiny"], 0).call("forward")
    with tune.using(other, {"samples_per_warp": 64}):
        run()
    run()
    assert called == [{"samples_per_warp": 64}]
    assert _native._C is installed


@pytest.mark.usefixtures("needs_native")
def test_every_choice_is_timed_and_a_wrong_one_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = _native._C
    assert installed is not None
    wrong = ModuleType("wrong")
    vars(wrong).update(vars(installed))
    wrong.cpu_forward = lambda *_: None  # type: ignore[attr-defined]  # leaves what was there
    name = next(each.name for each in VARIANTS if each.mode == FORWARD)
    monkeypatch.setattr(tune, "load", lambda _: {tune.INSTALLED: installed, name: wrong})
    monkeypatch.setattr(tune, "workloads", lambda _: [WORKLOADS["tiny"]])
    this = stage(tmp_path, "sweep")
    assert tune.time_variants(this)
    rows = _rows(tmp_path)
    for mode in (FORWARD, BACKWARD):
        timed = [row for row in rows if row["mode"] == mode]
        assert timed[0]["ratio"]["median"] == 1
        assert {tuple(row["forced"]) for row in timed} == {
            (),
            *((knob.name,) for knob in KNOBS if knob.mode == mode),
        }
        assert all(row["num_rounds"] == this.rounds for row in timed)
        assert [row["variant"] for row in timed if "wrong" in row] == [name] * (mode == FORWARD)
    assert "WRONG" in tune.times(rows)
    # A process that goes on leaves out what is done.
    assert tune.time_variants(this)
    assert _rows(tmp_path) == rows


@pytest.mark.usefixtures("needs_native")
def test_a_choice_that_ended_the_process_is_left_out_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "load", lambda _: {tune.INSTALLED: _native._C})
    monkeypatch.setattr(tune, "workloads", lambda _: [WORKLOADS["tiny"]])
    this = stage(tmp_path, "sweep")
    this.record.write(trying="tiny, float32, backward: installed, samples_per_warp 64")
    assert tune.time_variants(this)
    found = this.record.read()
    assert found["notes"] == [
        "tiny, float32, backward: installed, samples_per_warp 64:"
        " it has ended the process that tried it"
    ]
    assert not any(row["forced"] == {"samples_per_warp": 64} for row in _rows(tmp_path))
    assert any(row["forced"] == {"samples_per_warp": 256} for row in _rows(tmp_path))


@pytest.mark.usefixtures("needs_native")
def test_variants_are_modules_of_their_own(tmp_path: Path) -> None:
    """A module that has the name of one that is loaded would be that one."""
    installed = _native._C
    assert installed is not None
    for variant in VARIANTS[:2]:
        folder = tmp_path / variant.slug
        folder.mkdir()
        shutil.copy(str(installed.__file__), folder / "_C.so")
    loaded = tune.load(tmp_path)
    assert list(loaded) == [tune.INSTALLED, *(variant.name for variant in VARIANTS[:2])]
    assert len({id(module) for module in loaded.values()}) == 3
    assert len({id(module.cpu_forward) for module in loaded.values()}) == 3


@pytest.mark.usefixtures("needs_native")
def test_where_nothing_can_be_captured_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(_: object, mode: str, device: str) -> Any:
        if mode == FORWARD:
            raise RuntimeError("operation not permitted")
        return usual(_, mode, device)

    usual = tune.capture
    monkeypatch.setattr(tune, "capture", capture)
    monkeypatch.setattr(tune, "load", lambda _: {tune.INSTALLED: _native._C})
    monkeypatch.setattr(tune, "workloads", lambda _: [WORKLOADS["tiny"]])
    this = stage(tmp_path, "sweep")
    assert tune.time_variants(this)
    found = this.record.read()
    assert {row["mode"] for row in _rows(tmp_path)} == {BACKWARD}
    assert all("operation not permitted" in note for note in found["notes"])


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("mode", [FORWARD, BACKWARD])
def test_answers_keep_no_graph(mode: str) -> None:
    """Its leaves would be added to on the stream of these calls, which a capture refuses."""
    answers = tune._answers(OPERATORS["native"].prepare(WORKLOADS["tiny"], 0), mode)
    assert all(tensor.grad_fn is None for tensor in answers)


def _row(variant: str, forced: dict[str, int], ratio: float, **more: object) -> dict[str, Any]:
    return {
        "measurement": "tuning",
        "label": "paper-encoder, float32",
        "mode": "forward",
        "variant": variant,
        "forced": forced,
        "seconds": {"median": 1e-4 * ratio},
        "ratio": {"median": ratio, "q1": ratio, "q3": ratio},
        **more,
    }


def test_the_winner_is_told_where_it_gains() -> None:
    usual = _row(tune.INSTALLED, {}, 1.0)
    variant = next(each for each in VARIANTS if each.files())
    faster = _row(variant.name, {}, 0.8)
    wrong = _row(tune.INSTALLED, {"forward_splits": 2}, 0.1, wrong="by far")
    printed = re.sub(" +", " ", tune.winners([usual, faster, wrong]))
    assert (
        f"| paper-encoder, float32 | forward | 100.0 | 80.0 | 0.800 | {variant.name} |" in printed
    )
    # Less than a hundredth, or not in most rounds: nothing to change.
    for ratio in ({"median": 0.995, "q3": 0.996}, {"median": 0.9, "q3": 1.02}):
        printed = tune.winners([usual, _row(variant.name, {}, 0.9) | {"ratio": ratio}])
        assert "| nothing " in printed
    assert tune.winners([]) == ""


def test_kernels_are_told_with_their_times() -> None:
    matrix = torch.rand(64, 64)
    rows = kernel_times.measure(lambda: matrix @ matrix, "cpu")
    product = next(row for row in rows if row["kernel"] == "aten::mm")
    assert product["launches"] == 1
    assert 0 < product["kernel_seconds"] < 0.1
    assert [row["kernel_seconds"] for row in rows] == sorted(
        (r["kernel_seconds"] for r in rows), reverse=True
    )


def test_names_of_kernels_are_short() -> None:
    name = (
        "void stdeform::cuda::forward_kernel<float, 3, stdeform::cuda::RowLayout<6, 2, 4, true> >"
        "(stdeform::cuda::Call)"
    )
    assert kernel_times.short(name) == "forward_kernel<float, 3>"
    assert kernel_times.function(name) == "forward_kernel"
    plain = "stdeform::cuda::(anonymous namespace)::reserve_kernel(stdeform::cuda::Bins)"
    assert kernel_times.function(plain) == "reserve_kernel"
    assert kernel_times.function("void at::native::elementwise") is None
