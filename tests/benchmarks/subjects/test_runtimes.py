"""What runtimes leave in a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch import nn, zeros

from tests.support.exported import to_onnx

_HANDLES_A_SIGNAL = """
import os, signal, sys, threading
from benchmarks.subjects import runtimes

running = [runtimes.load("openvino", sys.argv[1], 1)]
thread = threading.Thread(target=running.clear)  # a model ends on another thread than it began
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)  # no process that ends sends this one
"""


def test_a_signal_is_handled_after_openvino(tmp_path: Path) -> None:
    to_onnx(nn.ReLU(), (zeros(2),), tmp_path / "model.onnx")
    command = [sys.executable, "-X", "faulthandler", "-c", _HANDLES_A_SIGNAL]
    result = subprocess.run(
        [*command, str(tmp_path / "model.onnx")], text=True, capture_output=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
