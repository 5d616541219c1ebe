"""The command `stdeform`: versions, build, the backend of each device, and a self-check.

Its exit status is 1 if the self-check fails, or if it would check the sources in the current folder
instead of the stdeform that is installed.
"""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from . import __version__, _native, functional, reference, testing
from ._build import BuildRecord, find_hidden_install, read_record

_FOLDER = Path(__file__).parent
_FORMS = {"st_deform_attn": "attention", "st_deform_attn_from_offsets": "from_offsets"}
_CHECKED_SHAPES = (((6, 5), (3, 4)), ((3, 6, 5), (2, 3, 4)))  # N = 2 and 3, two levels each


def main() -> int:
    """Prints the report and returns the exit status."""
    if hidden := find_hidden_install():
        print(
            f"Not checked: this is the source tree {_FOLDER}, which was never built.\n"
            f"It hides the stdeform that is installed in {hidden}.\n"
            "To check that one, type: stdeform\n"
            "or, in another folder: python -m stdeform"
        )
        return 1
    _print_section("versions", _versions())
    _print_section("build", _build(read_record()))
    _print_section("backends", _backends())
    passed = True
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        started = time.perf_counter()
        worst = _self_check(device)
        _print_section(
            f"self-check on {device}: largest error against the float64 reference (1.00 is the "
            "tolerance)",
            {name: f"{error:.2f}" for name, error in worst.items()},
        )
        right = all(error <= 1 for error in worst.values())
        seconds = time.perf_counter() - started
        print(f"self-check {'passed' if right else 'FAILED'} in {seconds:.2f} s")
        passed &= right
    return 0 if passed else 1


def _versions() -> dict[str, str]:
    try:
        numpy = version("numpy")
    except PackageNotFoundError:
        numpy = "not installed"
    return {
        "stdeform": __version__,
        "folder": str(_FOLDER),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy,
    }


def _build(record: BuildRecord) -> dict[str, str]:
    native, cuda = record.native, record.cuda
    if native is None:
        return {"native core": f"none: {record.no_native}"}
    return {
        "compiler": native.compiler,
        "ISAs": ", ".join(native.isas)
        + "".join(f" (not {isa}: {reason})" for isa, reason in native.refused.items()),
        "CUDA": f"{cuda.version} for {', '.join(cuda.architectures)}, PTX of {cuda.ptx}"
        if cuda
        else f"none: {record.no_cuda}",
    }


def _backends() -> dict[str, str]:
    chosen = {}
    for device_type in ("cpu", "cuda"):
        missing = _native.missing(device_type)
        chosen[f"{device_type} tensor"] = f"reference: {missing}" if missing else "native"
    if isas := _native.usable_isas():
        chosen["cpu tensor"] += (
            f", ISA {isas[0]}, threads {torch.get_num_threads()} of {_native.thread_pool()}"
        )
    if not torch.cuda.is_available():
        chosen["cuda tensor"] += " (and torch sees no CUDA device here)"
    return chosen


def _self_check(device: str) -> dict[str, float]:
    """Runs both forms, forward and backward, for N = 2 and 3.

    Returns:
        The largest error of each, as a multiple of what `testing.TOLERANCES` allows.
    """
    backend = "reference" if _native.missing(device) else "native"
    worst = {}
    for form in _FORMS:
        for shapes in _CHECKED_SHAPES:
            # A row of 48 channels takes every path of the vector code; see `kink_margin` there.
            problem = testing.make_problem(shapes, head_dim=48, kink_margin=0.05)
            moved = problem.map(lambda tensor: tensor.to(device))
            actual = [result.cpu() for result in _results(functional, form, moved, backend=backend)]
            expected = _results(reference, form, problem.to(torch.float64))
            errors = [testing.excess(actual[0], expected[0], "forward")]
            for gradient, correct in zip(actual[1:], expected[1:], strict=True):
                errors.append(testing.excess(gradient, correct, "gradient"))
            worst[f"{form}, N = {len(shapes[0])}, {backend}"] = max(errors)
    return worst


def _results(
    module: ModuleType, form: str, problem: testing.Problem, **options: str
) -> list[Tensor]:
    """Returns the result of one form of the operator and the gradients of all its tensors."""
    arguments = getattr(problem.requires_grad_(), _FORMS[form])
    result = getattr(module, form)(*arguments, **options)
    inputs = [argument for argument in arguments if isinstance(argument, Tensor)]
    return [result, *torch.autograd.grad((result * problem.grad_out).sum(), inputs)]


def _print_section(title: str, lines: dict[str, str]) -> None:
    print(title)
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"  {name:<{width}}  {text}")
    print()


if __name__ == "__main__":
    sys.exit(main())
