"""The quickstart: three short scripts that need nothing but PyTorch and stdeform."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a script as a user does and returns what it printed."""
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    return capsys.readouterr().out


def differences(text: str) -> list[float]:
    return [
        float(number) for number in re.findall(r"largest difference.* ([\d.e+-]+)$", text, re.M)
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_short_and_self_contained(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python examples/quickstart/{script.name}" in text
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).partition(".")[0])
    assert modules - set(sys.stdlib_module_names) == {"torch", "stdeform"}


@pytest.mark.usefixtures("needs_native")
def test_operator_agrees_with_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    found = differences(run("01_operator.py", capsys))
    assert len(found) == 5  # the output and four gradients
    assert 0 < max(found) < 1e-4  # two computations, not one compared with itself


@pytest.mark.usefixtures("needs_native")
def test_video_encoder_learns(capsys: pytest.CaptureFixture[str]) -> None:
    text = run("02_video_encoder.py", capsys)
    errors = [float(error) for error in re.findall(r"error ([\d.]+)", text)]
    # Waves have variance 0.5 and the noise 1, so a model of single pixels stays above 0.3.
    assert errors[0] > 0.5
    assert errors[-1] < 0.2


@pytest.mark.usefixtures("needs_native")
def test_exchanged_attention_computes_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = differences(run("03_swap_into_deformable_detr.py", capsys))
    assert 0 < found < 1e-5
