"""A prediction that is killed goes on where it was, to the very same results."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from defvis.evaluation import overlays, predict
from defvis.evaluation.journal import KeptJournal
from tests.examples.support import program

infer, evaluate = program("infer_defvis"), program("evaluate_defvis")
LENGTH = 11


class Killed(BaseException):
    """What no program catches."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of clips of each forward pass."""
    made: list[int] = []
    real = predict._Network.__call__

    def count(self: predict._Network, pixels: Any) -> Iterator[Any]:
        made.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(predict._Network, "__call__", count)
    return made


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A folder of pictures."""
    random, folder = np.random.default_rng(0), tmp_path / "noise"
    folder.mkdir()
    for index in range(LENGTH):
        pixels = random.integers(0, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def _kill(owner: object, name: str, after: int, act: Callable[[], None]) -> None:
    """Runs a program that dies in a call of a function, after that many went well."""
    real, number = getattr(owner, name), itertools.count()

    def method(*args: Any) -> Any:
        if next(number) == after:
            raise Killed
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, method)
        with pytest.raises(Killed):
            act()


@pytest.mark.parametrize(("window", "clips"), [(4, 5), (1, LENGTH)])
def test_infer(
    window: int, clips: int, noise: Path, tiny_run: Path, tmp_path: Path, calls: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Killed before the fourth clip is recorded, with half a line written, and while it draws."""
    words = ["--run", str(tiny_run), "--source", str(noise), "--threshold", "0",
             "--window", str(window), "--write", "results", "sheet", "--out"]  # fmt: skip
    out, whole = tmp_path / "killed", tmp_path / "whole"
    infer([*words, str(whole)])
    assert calls == [1] * clips
    calls.clear()
    _kill(KeptJournal, "save", 3, lambda: infer([*words, str(out)]))
    with (out / "unfinished/finished.jsonl").open("ab") as file:
        file.write(b'[7, 8, "half a li')
    with pytest.raises(SystemExit, match="holds an interrupted run: --resume goes on with it"):
        infer([*words, str(out)])
    (out / "unfinished/thesis.txt").touch()  # Who else put something there keeps it.
    _kill(overlays, "save_sheet", 0, lambda: infer([*words, str(out), "--resume"]))
    assert "going on after clip 3" in capsys.readouterr().out
    assert calls == [1] * (clips + 1)
    infer([*words, str(out), "--resume"])
    assert calls == [1] * (clips + 1)
    for name in ("results.json", "sheet.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert json.loads((out / "results.json").read_text())
    (out / "unfinished/thesis.txt").unlink()
    (out / "unfinished").rmdir()
    assert sorted(path.name for path in out.iterdir()) == [".lock", "results.json", "sheet.png"]


def test_what_must_agree(noise: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--run", str(tiny_run), "--source", str(noise), "--write", "--out", str(out)]
    _kill(KeptJournal, "save", 1, lambda: infer(words))
    words.append("--resume")
    for other, message in (
        (["--window", "3"], "was begun with --window 4, not 3"),
        (["--every", "2"], "was begun with --every 1, not 2"),
        (["--short-side", "24"], "was begun with --short-side 0, not 24"),
        (["--precision", "bf16"], "was begun with --precision fp32, not bf16"),
    ):
        with pytest.raises(SystemExit, match=f"{message}; delete .*unfinished to begin anew"):
            infer([*words, *other])
    (noise / f"{LENGTH - 1}.png").rename(noise / f"{LENGTH}.png")
    with pytest.raises(SystemExit, match=r"was begun with the source's files .*, not "):
        infer(words)
    (noise / f"{LENGTH}.png").rename(noise / f"{LENGTH - 1}.png")
    lines = out / "unfinished/finished.jsonl"
    content = lines.read_bytes()
    lines.write_bytes(content[:10])
    with pytest.raises(SystemExit, match=r"finished\.jsonl is shorter than it was; delete"):
        infer(words)
    lines.write_bytes(content)
    record = out / "unfinished/state.pt"
    good = torch.load(record)
    for broken in (3, {}, {**good, "length": "0"}, {**good, "state": None}):
        torch.save(broken, record)
        with pytest.raises(SystemExit, match=r"state\.pt cannot be read; delete"):
            infer(words)
    record.write_bytes(record.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=r"state\.pt cannot be read; delete"):
        infer(words)


def test_evaluate(
    digits: Path, tiny_run: Path, tmp_path: Path, calls: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Six videos in batches of four, killed after the second and after the fifth."""
    out = tmp_path / "results.json"
    words = ["--data", str(digits / "val"), "--run", str(tiny_run), "--out", str(out)]
    _kill(KeptJournal, "save", 2, lambda: evaluate(words))
    with pytest.raises(SystemExit, match="holds an interrupted run: --resume goes on with it"):
        evaluate(words)
    words.append("--resume")
    with pytest.raises(SystemExit, match="was begun with --batch-size 4, not 3"):
        evaluate([*words, "--batch-size", "3"])
    _kill(KeptJournal, "save", 3, lambda: evaluate(words))
    assert not out.exists()
    assert calls == [4, 4, 2]
    evaluate(words)
    assert calls == [4, 4, 2, 2]
    assert "going on after video 5 of 6" in capsys.readouterr().out
    assert out.read_bytes() == (tiny_run / "results.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
