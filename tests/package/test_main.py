"""The command `stdeform` and the build record."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stdeform
from stdeform import __main__ as report
from stdeform import _build, _native, functional

NATIVE = {
    "compiler": "c++ 1.2.3",
    "isas": ["portable", "avx2"],
    "refused": {"avx512": "unknown argument: '-mavx512f'"},
}
CUDA = {"version": "13.0", "architectures": ["80", "90"], "ptx": "90"}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the record is read from; nothing is there yet."""
    monkeypatch.setattr(_build, "_RECORD", tmp_path / "_build.json")
    return tmp_path / "_build.json"


def test_report_names_versions_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert f"stdeform  {stdeform.__version__}\n" in printed
    assert f"torch     {torch.__version__}\n" in printed
    backend = "reference" if _native.missing("cpu") else "native"
    assert f"cpu tensor   {backend}" in printed
    for form in ("st_deform_attn", "st_deform_attn_from_offsets"):
        for axes in (2, 3):
            assert f"{form}, N = {axes}, {backend}" in printed
    assert "self-check passed in" in printed


@pytest.mark.parametrize("form", ["st_deform_attn", "st_deform_attn_from_offsets"])
@pytest.mark.parametrize("factor", [1 + 1e-3, torch.nan])
def test_wrong_results_fail_the_check(
    form: str,
    factor: float,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = getattr(functional, form)
    monkeypatch.setattr(functional, form, lambda *a, **k: right(*a, **k) * factor)
    assert report.main() == 1
    assert "self-check FAILED" in capsys.readouterr().out


def test_the_report_of_a_build(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"native": NATIVE, "no_native": "", "cuda": CUDA, "no_cuda": "no nvcc"}
    record.write_text(json.dumps(facts))
    report.main()
    printed = capsys.readouterr().out
    assert "compiler  c++ 1.2.3\n" in printed
    assert "ISAs      portable, avx2 (not avx512: unknown argument: '-mavx512f')\n" in printed
    assert "CUDA      13.0 for 80, 90, PTX of 90\n" in printed
    record.write_text(json.dumps({**facts, "cuda": None}))
    report.main()
    assert "CUDA      none: no nvcc\n" in capsys.readouterr().out


def test_no_record_is_an_unbuilt_source_tree(record: Path) -> None:
    assert not record.exists()
    facts = _build.read_record()
    assert facts.native is None
    assert facts.cuda is None
    assert "never built" in facts.no_native


def test_a_record_of_other_sources_asks_for_a_rebuild(record: Path) -> None:
    """As after `git pull` in a checkout with an editable install."""
    facts = {"native": {**NATIVE, "of_another_version": 1}, "no_native": "", "cuda": None}
    record.write_text(json.dumps({**facts, "no_cuda": ""}))
    assert "run: pip install -e ." in _build.read_record().no_native


@pytest.mark.parametrize("built", [True, False])
def test_sources_do_not_pass_for_the_install_that_they_hide(
    built: bool,
    record: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = {"native": NATIVE if built else None, "no_native": "", "cuda": None, "no_cuda": ""}
    package = tmp_path / "site-packages" / "stdeform"
    metadata = package.with_name("stdeform-0.1.0.dist-info") / "METADATA"
    for folder in (package, metadata.parent):
        folder.mkdir(parents=True)
    metadata.write_text("Name: stdeform\n")
    (package / "_build.json").write_text(json.dumps(facts))
    monkeypatch.syspath_prepend(str(package.parent))
    assert report.main() == (1 if built else 0)
    printed = capsys.readouterr().out
    assert (f"hides the stdeform that is installed in {package}" in printed) == built
    assert ("self-check" in printed) != built
    record.write_text(json.dumps({**facts, "native": NATIVE}))
    assert report.main() == 0  # the sources were built: they are what runs


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="needs /proc/cpuinfo")
def test_the_instruction_sets_are_those_that_the_system_knows() -> None:
    """A compiler's runtime library may not know them, and the kernels would be slow in silence."""
    if _native.missing("cpu"):
        pytest.skip("there is no native core")
    flags = set(re.findall(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)[0].split())
    needed = {
        "portable": set(),
        "avx2": {"avx2", "fma", "f16c", "bmi1", "bmi2"},
        "avx512": {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"},
    }
    built = _build.read_record().native
    assert built
    there = [isa for isa in built.isas if needed[isa] <= flags]
    assert _native.usable_isas() == there[::-1]


def test_the_threads_are_those_of_pytorch() -> None:
    """Of the one OpenMP runtime that it has loaded; stdeform brings no other."""
    if _native.missing("cpu"):
        pytest.skip("there is no native core")
    assert _native._C
    runtime = _native._C.openmp_runtime()
    assert bool(runtime) == ("parallel backend: OpenMP" in torch.__config__.parallel_info())
    assert _native.thread_pool() == (Path(runtime).name or "std::thread")
    if Path("/proc/self/maps").is_file() and runtime:
        assert os.path.realpath(runtime) in Path("/proc/self/maps").read_text()


RUNTIME = """
extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned, unsigned) { work(data); }
extern "C" int omp_get_thread_num() { return 0; }
extern "C" int omp_get_num_threads() { return 1; }
extern "C" int omp_get_num_procs() { return 1; }
"""
PRELOADED = """
import torch, stdeform, stdeform._C
value, locations = torch.rand(1, 999, 2, 8), torch.rand(1, 999, 2, 1, 4, 3)
stdeform.st_deform_attn(value, [(9, 3, 37)], locations, torch.ones(1, 999, 2, 1, 4))
print(stdeform._C.openmp_runtime())
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("c++"), reason="needs Linux, c++")
def test_a_runtime_that_is_preloaded_is_used(tmp_path: Path) -> None:
    """As PyTorch does, whose own runtime would be a second pool."""
    if _native.missing("cpu"):
        pytest.skip("there is no native core")
    source, library = tmp_path / "runtime.cpp", tmp_path / "runtime.so"
    source.write_text(RUNTIME)
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", PRELOADED]
    assert subprocess.check_output(command, env=environment, text=True) == f"{library}\n"
