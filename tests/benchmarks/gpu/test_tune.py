"""Tuning in `gpu-check`: variants apply and compile, all are timed, the winner is reported."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu import tune, variants
from benchmarks.gpu.stage import RESULTS, Found
from benchmarks.gpu.variants import VARIANTS, Variant
from benchmarks.measure import kernel_times
from benchmarks.measure.recording import load_rows
from benchmarks.measure.rows import Row
from benchmarks.subjects.base import Case
from benchmarks.subjects.registry import IMPLEMENTATIONS as OPERATORS
from benchmarks.workloads import WORKLOADS
from stdeform import _native
from tests.benchmarks.gpu.test_stage import stage

ROOT = Path(__file__).parents[3]
CHANGES = tuple(each for each in VARIANTS if each.file)
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

# -- what is tried -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", CHANGES, ids=lambda variant: variant.name)
def test_a_variant_changes_the_present_sources(variant: Variant) -> None:
    before = (ROOT / variants.CUDA / variant.file).read_text()
    changed = variant.changed()  # raises where a line is gone
    assert len(changed.splitlines()) == len(before.splitlines())
    assert variant.text in changed


def test_what_changes_nothing_is_told() -> None:
    variant = Variant("gone", "forward", {}, "params.h", "kForwardWarps|kNoSuch", "kForwardWarps")
    with pytest.raises(ValueError, match=r"csrc/cuda/params.h has nothing like kForwardWarps"):
        variant.changed()


def test_what_is_forced_is_a_field() -> None:
    tuning = (ROOT / "csrc" / "cuda" / "params.h").read_text()
    names = {name for variant in VARIANTS for name in variant.forced}
    assert len(names) == 6
    assert all(f"int64_t {name} = -1;" in tuning for name in names)


# The kernels that variants are about, and a launch. The forward with 16 channels has the most
# query-heads to a warp, and so the most shared memory.
SOME_KERNELS = """
#include "cuda/launch.cuh"
#include "cuda/zero.cu"
namespace stdeform::cuda {
template __global__ void forward_kernel<BFloat16, 3, VectorLayout<48, 8>>(
    const __grid_constant__ KernelParams, TilePartition);
template __global__ void forward_kernel<BFloat16, 3, VectorLayout<16, 8>>(
    const __grid_constant__ KernelParams, TilePartition);
template __global__ void bin_backward_kernel<float, 3, BinLayout<3, 48>>(
    const __grid_constant__ KernelParams, const __grid_constant__ Bins, int);
}
"""


@pytest.mark.skipif(not NVCC, reason="needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize("variant", CHANGES, ids=lambda variant: variant.name)
def test_a_variant_compiles(variant: Variant, tmp_path: Path) -> None:
    """Some of its kernels; `variants` of gpu-check builds and links all of two dtypes."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / variants.CUDA / variant.file).write_text(variant.changed())
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
build build/native/_C.so: link build/native/csrc/bindings.cpp.o \
build/native/csrc/cuda/inst_f32.cu.o build/native/csrc/cuda/inst_f64.cu.o
  tool = g++
  flags = -lrt
"""


def test_a_variant_is_built_as_the_module_is_with_its_own_kernels_first() -> None:
    text = variants._plan(PLAN, [Path("/some/place")])
    assert text == (
        f"builddir = {variants.FOLDER}\n"
        "rule compile\n  command = $tool\nrule link\n  command = $tool\n"
        "build /some/place/csrc/cuda/inst_f32.cu.o: compile /some/place/csrc/cuda/inst_f32.cu\n"
        "  tool = nvcc\n  flags = -O3 -I/some/place/csrc\n"
        "build /some/place/_C.so: link /some/place/csrc/cuda/inst_f32.cu.o"
        " build/native/csrc/bindings.cpp.o build/native/csrc/cuda/inst_f64.cu.o\n"
        "  tool = g++\n  flags = -lrt\n"
    )


def test_without_a_build_there_are_no_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "ROOT", tmp_path)
    this = stage(tmp_path, "variants", device="cuda")
    assert not variants.build(this)
    assert this.read()["notes"] == ["variants need the objects of an in-place build with CUDA"]


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
        called.append(_native.options.cuda_tuning["samples_per_warp"])
        installed.cpu_forward(*arguments)

    other.cpu_forward = cpu_forward  # type: ignore[attr-defined]
    run = OPERATORS["native"].prepare(WORKLOADS["tiny"], 0).call("forward")
    with tune.using(other, Variant("some", forced={"samples_per_warp": 64})):
        run()
    run()
    assert called == [64]
    assert _native._C is installed


@pytest.fixture
def sweep(
    needs_native: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[Variant, Any]], Found]:
    """Runs the sweep with these modules beside those that are forced; what it has found."""
    load = tune.load
    monkeypatch.setattr(variants, "FOLDER", tmp_path / "variants")

    def run(more: dict[Variant, Any]) -> Found:
        monkeypatch.setattr(tune, "load", lambda: {**load(), **more})
        this = stage(tmp_path, "sweep")
        assert tune.sweep(this)
        return this.read()

    return run


def test_every_variant_is_timed_and_a_wrong_one_is_marked(
    sweep: Callable[[dict[Variant, Any]], Found], tmp_path: Path
) -> None:
    wrong = ModuleType("wrong")
    vars(wrong).update(vars(_native._C))
    wrong.cpu_forward = lambda *_: None  # type: ignore[attr-defined]  # leaves what was there
    sweep({CHANGES[0]: wrong})
    rows = _rows(tmp_path)
    assert {row["label"] for row in rows} == {"tiny, float32", "tiny, bfloat16"}
    for mode in ("forward", "backward"):
        timed = [row for row in rows if (row["label"], row["mode"]) == ("tiny, float32", mode)]
        forced = [each.name for each in VARIANTS if each.forced and each.mode == mode]
        planted = [CHANGES[0].name] if mode == "forward" else []
        assert [row["variant"] for row in timed] == ["installed", *forced, *planted]
        assert timed[0]["ratio"]["median"] == 1
        assert [row["variant"] for row in timed if "wrong" in row] == planted
    assert "WRONG" in tune.shares(rows)
    # A process that goes on leaves out what is done.
    sweep({})
    assert _rows(tmp_path) == rows


def test_a_variant_that_ended_the_process_is_left_out_by_the_next(
    sweep: Callable[[dict[Variant, Any]], Found], tmp_path: Path
) -> None:
    ended = "tiny, float32, backward: samples_per_warp 64"
    stage(tmp_path, "sweep").write(trying=ended)
    assert sweep({})["notes"] == [f"{ended}: it has ended the process that tried it"]
    timed = [row["variant"] for row in _rows(tmp_path) if row["label"] == "tiny, float32"]
    assert "samples_per_warp 64" not in timed
    assert "samples_per_warp 256" in timed


def test_where_nothing_can_be_captured_the_others_are_timed(
    sweep: Callable[[dict[Variant, Any]], Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(prepared: Case, mode: str, device: str) -> Any:
        if mode == "forward":
            raise RuntimeError("operation not permitted")
        return usual(prepared, mode, device)

    usual = tune.capture
    monkeypatch.setattr(tune, "capture", capture)
    notes = sweep({})["notes"]
    assert {row["mode"] for row in _rows(tmp_path)} == {"backward"}
    assert notes
    assert all("operation not permitted" in note for note in notes)


@pytest.mark.usefixtures("needs_native")
def test_variants_are_modules_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that has the name of one that is loaded would be that one."""
    monkeypatch.setattr(variants, "FOLDER", tmp_path)
    for variant in CHANGES[:2]:
        variant.module.parent.mkdir()
        shutil.copy(str(_native._C.__file__), variant.module)  # type: ignore[union-attr]
    loaded = tune.load()
    assert [variant for variant in loaded if variant.file] == list(CHANGES[:2])
    assert len({id(module) for module in loaded.values()}) == 3
    assert len({id(module.cpu_forward) for module in loaded.values()}) == 3


@pytest.mark.usefixtures("needs_native")
def test_answers_keep_no_graph() -> None:
    """Its leaves would be added to on the stream of these calls, which a capture refuses."""
    answers = tune._answers(OPERATORS["native"].prepare(WORKLOADS["tiny"], 0), "backward")
    assert all(tensor.grad_fn is None for tensor in answers)


def _row(variant: str, ratio: float, q3: float | None = None, **more: object) -> dict[str, Any]:
    return {
        "measurement": "tuning",
        "label": "paper-encoder, float32",
        "mode": "forward",
        "variant": variant,
        "seconds": {"median": 1e-4 * ratio},
        "ratio": {"median": ratio, "q3": q3 or ratio},
        **more,
    }


def test_the_winner_is_told_where_it_gains() -> None:
    usual, wrong = _row("installed", 1.0), _row("forward_splits 2", 0.1, wrong="by far")
    for rows, expected in [
        ([usual, _row("faster", 0.8), wrong], "100.0 | 80.0 | 0.800 | faster"),
        # Of rows of the same the last counts.
        ([_row("faster", 0.1), usual, _row("faster", 0.9)], "100.0 | 90.0 | 0.900 | faster"),
        # Less than a hundredth, or not in most rounds: nothing to change.
        ([usual, _row("faster", 0.995)], "100.0 | 99.5 | 0.995 | nothing"),
        ([usual, _row("faster", 0.9, q3=1.02)], "100.0 | 90.0 | 0.900 | nothing"),
    ]:
        printed = re.sub(" +", " ", tune.winners(rows))
        assert f"| paper-encoder, float32 | forward | {expected} |" in printed
    # Without what is installed there is nothing to gain on.
    assert tune.winners([_row("faster", 0.9)]) == tune.winners([]) == ""


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
