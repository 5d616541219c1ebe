"""export_defvis.py --format aoti: the package in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from defvis.training.load_trained import load_trained
from tests.examples.support import EXAMPLES, program

pytestmark = pytest.mark.slow
_RUN = """
import sys, torch
package, inputs, outputs, *modules = sys.argv[1:]
for module in modules:
    __import__(module)
model = torch._inductor.aoti_load_package(package)
torch.save([model(*clips) for clips in torch.load(inputs)], outputs)
assert modules or not any(name.startswith(("stdeform", "defvis")) for name in sys.modules)
"""


def _run(*words: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=EXAMPLES.parent,
    )  # fmt: skip


@pytest.mark.parametrize("form", [[], ["--form", "gather"]], ids=["operator", "gather"])
def test_a_fresh_process(form: list[str], tiny_run: Path, source: Path, tmp_path: Path) -> None:
    """The program compares with PyTorch; another process, without defvis, gives the same."""
    file, inputs, outputs = tmp_path / "tiny.pt2", tmp_path / "inputs.pt", tmp_path / "outputs.pt"
    program("export_defvis")(
        ["--run", str(tiny_run), "--source", str(source), "--out", str(file),
         "--format", "aoti", *form]
    )  # fmt: skip
    frames = torch.randn(3, 5, 3, 48, 64)
    padding = torch.zeros(3, 5, 48, 64, dtype=torch.bool)
    padding[1, 3:] = padding[2, :, 20:] = True
    clips = [(frames, padding), (frames[:1, :1].contiguous(), padding[:1, :1].contiguous())]
    torch.save(clips, inputs)
    alone = _run(file, inputs, outputs)
    if not form:
        assert alone.returncode
        assert "Could not find schema for stdeform::st_deform_attn" in alone.stderr
        alone = _run(file, inputs, outputs, "stdeform")
    assert alone.returncode == 0, alone.stderr
    model = load_trained(tiny_run).model
    for found, batch in zip(torch.load(outputs), clips, strict=True):
        for one, other in zip(found, model.predict(*batch), strict=True):
            # Float32 in another order.
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
