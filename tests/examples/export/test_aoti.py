"""export_defvis.py --format aoti: the package in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defvis.config import Config
from defvis.models.model import DefVIS
from defvis.training.checkpoint import save_checkpoint
from defvis.training.load_trained import load_trained
from tests.examples.support import EXAMPLES, program, tiny_model

pytestmark = pytest.mark.slow
_RUN = """
import sys, torch
package, inputs, outputs, *modules = sys.argv[1:]
for module in modules:
    __import__(module)
model = torch._inductor.aoti_load_package(package)
torch.save([model(*clips) for clips in torch.load(inputs)], outputs)
assert not any(name.startswith("defvis") for name in sys.modules)
"""


def _run(*words: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=EXAMPLES.parent,
    )  # fmt: skip


@pytest.fixture(scope="module")
def smallest_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one attention, which compiles in seconds."""
    torch.manual_seed(0)
    config = Config(model=replace(tiny_model(), encoder_layers=0, decoder_layers=1))
    file = tmp_path_factory.mktemp("runs") / "checkpoint.pt"
    weights = DefVIS(config.model).state_dict()
    categories = {"ids": [1, 2, 3], "names": ["a", "b", "c"]}
    save_checkpoint(
        file,
        {"config": config.to_dict(), "model": weights, "state": {}, "categories": categories},
    )
    return file


def test_a_fresh_process(smallest_run: Path, source: Path, tmp_path: Path) -> None:
    """The program compares with PyTorch; another process, without defvis, gives the same."""
    file, inputs, outputs = tmp_path / "tiny.pt2", tmp_path / "inputs.pt", tmp_path / "outputs.pt"
    words = ["--run", str(smallest_run), "--source", str(source), "--out", str(file),
             "--format", "aoti"]  # fmt: skip
    # Compiles faster, and computes the same.
    fast = {"aot_inductor.compile_wrapper_opt_level": "O0", "cpp.simdlen": 0}
    with torch._inductor.config.patch(fast):
        program("export_defvis")(words)
    frames = torch.randn(3, 5, 3, 48, 64)
    padding = torch.zeros(3, 5, 48, 64, dtype=torch.bool)
    padding[1, 3:] = padding[2, :, 20:] = True
    clips = [(frames, padding), (frames[:1, :1].contiguous(), padding[:1, :1].contiguous())]
    torch.save(clips, inputs)
    alone = _run(file, inputs, outputs)
    assert alone.returncode
    assert "Could not find schema for stdeform::st_deform_attn" in alone.stderr
    alone = _run(file, inputs, outputs, "stdeform")
    assert alone.returncode == 0, alone.stderr
    model = load_trained(smallest_run).model
    for found, batch in zip(torch.load(outputs), clips, strict=True):
        for one, other in zip(found, model.predict(*batch), strict=True):
            # Float32 in another order, through a few layers.
            torch.testing.assert_close(
                one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max()))
            )


def test_a_machine_without_a_compiler(smallest_run: Path, source: Path, tmp_path: Path) -> None:
    words = ["--run", str(smallest_run), "--source", str(source), "--format", "aoti"]
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(SystemExit, match="needs a C\\+\\+ compiler"),
    ):
        program("export_defvis")([*words, "--out", str(tmp_path / "tiny.pt2")])
