"""A model shared out over two processes computes what copies of it do, in every variant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.examples.support import EXAMPLES, TORCHRUN

SCRIPT = Path(__file__).with_name("sharded_steps.py")


def test_shared_out_steps_equal_copied_ones(digits: Path) -> None:
    paths = [EXAMPLES, EXAMPLES.parent, os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [sys.executable, *TORCHRUN, str(SCRIPT), str(digits)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-5000:]
    assert process.stdout.count("all checks passed") == 2
