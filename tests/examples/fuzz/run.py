"""Fuzzes one reader, guided by the coverage of its lines: see README.md."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT)]

from tests.examples.fuzz import targets  # noqa: E402

_SLOW = 2.0  # seconds


def main() -> None:
    """Reads the command line and runs until libFuzzer ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=targets.MODULE_OF)
    parser.add_argument("folder", type=Path, help="holds the inputs; seeds and failures go there")
    args, for_libfuzzer = parser.parse_known_args()
    inputs, failures, scratch = (args.folder / name for name in ("inputs", "failures", "scratch"))
    for folder in (inputs, failures, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in targets.seeds(args.target).items():
        (inputs / name).write_bytes(data)
    with atheris.instrument_imports(include=["defvis", "PIL"], exclude=["defvis.models"]):
        target = targets.find(args.target)
    native = f"-artifact_prefix={failures}/"
    atheris.Setup(
        [sys.argv[0], native, *for_libfuzzer, str(inputs)], _Watched(target, scratch, failures)
    )
    atheris.Fuzz()


class _Watched:
    """Calls a target; keeps the first input of each kind of failure and goes on."""

    def __init__(
        self, target: Callable[[bytes, Path], None], scratch: Path, failures: Path
    ) -> None:
        self._target, self._scratch, self._failures = target, scratch, failures

    def __call__(self, data: bytes) -> None:
        begun = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self._target(data, self._scratch)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            last = next((f for f in reversed(frames) if "defvis" in f.filename), frames[-1])
            kind = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
            self._keep(kind, data, "".join(traceback.format_exception(error)))
        if time.monotonic() - begun > _SLOW:
            self._keep("slow", data, f"{time.monotonic() - begun:.1f} s")

    def _keep(self, kind: str, data: bytes, text: str) -> None:
        path = self._failures / f"found-{kind}"
        if not path.exists():
            path.write_bytes(data)
            path.with_name(f"{path.name}.txt").write_text(text)


if __name__ == "__main__":
    main()
