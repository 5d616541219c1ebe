"""Backends, threads and randomness, the same for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from stdeform import _native
from tests.cuda import emulated_gpu
from tests.cuda.emulated_gpu import EmulatedGpu
from tests.cuda.emulator import build
from tests.support import integers_on_gpu
from tests.support.cases import BACKENDS, KERNELS, NATIVE
from tests.support.integers_on_gpu import IntegersOnGpu

# The same examples on every machine: a failure in CI is a failure here. For a search with fresh
# examples: HYPOTHESIS_PROFILE=search.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=25,
    # The backend fixtures only set an option, which holds for all examples of a test.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "search", hypothesis.settings.get_profile("default"), derandomize=False, max_examples=1000
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header() -> str:
    gpu = torch.cuda.get_device_name() if emulated_gpu.HAS_GPU else "emulated"
    return f"stdeform: backends {', '.join(BACKENDS)}; GPU: {gpu}; torch {torch.__version__}"


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seeds torch, and undoes what a test forces on the kernels."""
    torch.manual_seed(0)
    forced = vars(_native.options).copy()
    yield
    vars(_native.options).clear()
    vars(_native.options).update(forced)


@pytest.fixture
def needs_emulator() -> None:
    """For tests that run CUDA kernels without a GPU."""
    try:
        build.compiler(), build.cuda_include()
    except FileNotFoundError as error:
        pytest.skip(f"the CUDA kernels cannot be emulated: {error}")


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[EmulatedGpu | None]:
    """A GPU; or an emulated one, which then is the fixture's value."""
    if emulated_gpu.HAS_GPU:
        yield None
        return
    request.getfixturevalue("needs_emulator")
    with emulated_gpu.installed() as installed:
        yield installed


@pytest.fixture
def shapes_on_gpu() -> Iterator[IntegersOnGpu]:
    """A GPU for integers only, such as level tables, that counts how often it is read."""
    with integers_on_gpu.installed() as installed:
        yield installed


def _force(request: pytest.FixtureRequest) -> str:
    """Gets ready what a backend needs, and returns its name without an instruction set."""
    needed = {"emulated": "needs_emulator", "cuda": "gpu"}
    if request.param in needed:
        request.getfixturevalue(needed[request.param])
    backend, _, isa = request.param.partition("-")
    if backend == "native":
        if not isa:
            pytest.skip(f"no native kernel: {_native.missing('cpu')}")
        _native.options.isa = isa
    return backend


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every way to compute: the reference, and each kernel; for `operator` of support/cases.py."""
    return _force(request)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    """Every kernel: the CPU's, one for each ISA, and CUDA's, on arrays and behind PyTorch."""
    return _force(request)


@pytest.fixture(params=["reference", *NATIVE])
def on_cpu(request: pytest.FixtureRequest) -> str:
    """Every way to compute that is a backend of the library's own for tensors of the CPU."""
    return _force(request)


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest) -> str:
    """The CPU's kernel for each instruction set that this machine has."""
    return _force(request)


@pytest.fixture
def needs_native() -> None:
    """For tests that any one native kernel serves."""
    if _native.missing("cpu"):
        pytest.skip(f"no native kernel: {_native.missing('cpu')}")
