"""How the emulator and its kernels are compiled."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.cuda.emulator import build
from tests.support.compiled import CompileError


def test_a_second_build_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library([build.HERE / "toys.cu"])
    monkeypatch.setattr(build, "make", None)
    assert build.library([build.HERE / "toys.cu"]) == path


def test_compiler_messages_are_shown(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text('#include "cuda/compat.cuh"\n__global__ void k() { __shared__ int x[2]; }\n')
    with pytest.raises(CompileError, match="BY_STDEFORM_SHARED"):
        build.library([source])


def test_headers_of_the_wheels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    # With neither a toolkit nor an nvcc, what pip installs must do; here it may not be installed.
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    build.cuda_include.cache_clear()
    monkeypatch.setattr(build, "FALLBACK", build.ROOT / "nowhere")
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/include/cuda_runtime.h"))
    try:
        if wheels:
            assert (build.cuda_include() / "cuda_bf16.h").is_file()
        else:
            with pytest.raises(FileNotFoundError, match="pip install nvidia-cuda-runtime"):
                build.cuda_include()
    finally:
        build.cuda_include.cache_clear()
