"""evaluate_defvis.py: from a results file, from a trained model, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.examples.support import program

evaluate = program("evaluate_defvis")


def test_ground_truth_scores_one(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((digits / "val/instances.json").read_text())
    results = [{"video_id": a["video_id"], "category_id": a["category_id"], "score": 1.0,
                "segmentations": a["segmentations"]} for a in content["annotations"]]  # fmt: skip
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    annotations = tmp_path / "alone.json"  # no frames beside it
    annotations.write_text(json.dumps(content))
    evaluate(["--data", str(annotations), "--results", str(file), "--per-class"])
    shown = capsys.readouterr().out
    assert f"6 videos, {len(results)} results" in shown
    assert "AP     1.0000" in shown
    assert "AP of 7:" in shown
    assert "APl    -1.0000" in shown


def test_model_gives_the_figures_of_its_run(
    digits: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/folder/results.json"
    evaluate(["--data", str(digits / "val"), "--run", str(tiny_run), "--out", str(out)])
    shown = capsys.readouterr().out
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    for name in ("AP", "AP50", "AR1", "AR10", "APs"):
        assert f"{name:6s} {metrics[name]:.4f}" in shown
    assert json.loads(out.read_text()) == json.loads((tiny_run / "results.json").read_text())


def test_another_scale(
    digits: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    words = ["--data", str(digits / "val"), "--run", str(tiny_run), "--out", str(out)]
    evaluate([*words, "--short-side", "96"])
    note = "frames of 64 x 48 pixels are shown to the model at 128 x 96, as --short-side says"
    assert note in capsys.readouterr().out
    assert out.read_text() != (tiny_run / "results.json").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "must hold a list, got dict"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('[{"video_id": 1, "category_id": 1, "score": 1, "segmentations": '
         '[null, {"size": [1, 1], "counts": "0"}, null, null]}]',
         r"results\[0\], frame 1: segmentation must have size \[48, 64\]"),
    ],
)  # fmt: skip
def test_broken_results(digits: Path, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(SystemExit, match=message):
        evaluate(["--data", str(digits / "val"), "--results", str(file)])


def test_missing_files(digits: Path, tiny_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"PK nothing")
    for arguments, message in (
        (["--data", str(digits / "val"), "--results", str(tmp_path / "x")], "x: cannot be read"),
        (["--data", str(digits / "val"), "--run", str(tmp_path)], "there is no checkpoint"),
        (["--data", str(tmp_path), "--run", str(tiny_run)], "holds none of"),
        (["--data", str(digits / "val"), "--run", str(broken)], "no checkpoint can be read"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=message):
            evaluate(arguments)
    content = json.loads((digits / "val/instances.json").read_text())
    content["categories"] = content["categories"][:9]
    content["annotations"] = []
    (tmp_path / "nine.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"other classes than .* has: .*missing"):
        evaluate(["--data", str(tmp_path / "nine.json"), "--run", str(tiny_run)])


@pytest.fixture
def no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("predicted before all was checked")

    monkeypatch.setattr("defvis.evaluation.predict.predict_videos", fail)


def test_what_is_looked_at_first(
    digits: Path, tiny_run: Path, tmp_path: Path, no_prediction: None
) -> None:
    """Where to write to, the names of the classes, and whether the frames are there."""
    data, file, folder = tmp_path / "data", tmp_path / "file", tmp_path / "folder.json"
    page, foreign = tmp_path / "page.html", tmp_path / "foreign.html"
    folder.mkdir()
    page.mkdir()
    foreign.write_text("<!doctype html>")
    shutil.copytree(digits / "val", data)
    file.touch()
    words = ["--run", str(tiny_run), "--data", str(data)]
    for out, message in (
        (folder, "it is a folder"),
        (file / "results.json", "to .*file: File exists"),
        (data / "instances.json", "it is the ground truth"),
        (page, "it is a folder"),
        (file / "page.html", "to .*file: File exists"),
        (foreign, "it is another file than a page of evaluate_defvis.py"),
    ):
        option = "--html" if out.suffix == ".html" else "--out"
        with pytest.raises(SystemExit, match=f"evaluate_defvis: cannot write .*{message}"):
            evaluate([*words, option, str(out)])
    picture = next((data / "JPEGImages").rglob("00002.*"))
    picture.unlink()
    with pytest.raises(SystemExit, match=f"frame is missing: .*{picture}"):
        evaluate(words)
    drawn = ["--results", str(tiny_run / "results.json"), "--html", str(tmp_path / "a.html")]
    with pytest.raises(SystemExit, match="frame is missing"):
        evaluate(["--data", str(data), *drawn])
    content = json.loads((data / "instances.json").read_text())
    content["categories"][3]["name"] = "cat"
    (data / "instances.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"other classes than .* class 3 is '3' .*'cat'"):
        evaluate(words)
    assert not list(tmp_path.glob("**/*.unfinished"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "x", "--window", "-1"], "--window: must be a whole number of at least 0"),
        (["--run", "x", "--batch-size", "0"], "--batch-size: must be a whole number of at least 1"),
        (["--run", "x", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--onnx", "x", "--device", "cpu"], "--device needs --run"),
        (["--results", "x", "--resume", "--out", "y.json"], "--resume needs --out"),
        (["--run", "x", "--resume"], "--resume needs --out"),
        (["--results", "x", "--short-side", "96"], "--short-side needs --run or --onnx"),
        (["--run", "x", "--html", "pages"], "--html must be a file .html, got pages"),
        (["--run", "x", "--threshold", "0.5"], "--threshold needs --errors or --html"),
        (["--run", "x", "--errors", "--threshold", "2"], "--threshold: must be 0 to 1, got 2"),
        (["--run", "x", "--out", "x/checkpoint.pt"], "--out must be a file .json, got x/check"),
    ],
)
def test_wrong_calls(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate(["--data", "nowhere", *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
