"""The page of errors: complete by itself, well-formed, the worst videos first."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.support import program

evaluate = program("evaluate_defvis")
NAMES = ["<b>&\"'", "数字"]  # of two classes
VOID = ("meta", "img", "br")


class Page(HTMLParser):
    """Checks that elements are closed in order; collects what a page would load and shows."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.alt: list[str] = []
        self.text = ""
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "b", "iframe")
        found = dict(attrs)
        self.links += [found[name] or "" for name in ("src", "href") if name in found]
        if tag == "img":
            self.alt.append(found["alt"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def files(digits: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Ground truth with other names, and as results the same with errors in two videos."""
    content = json.loads((digits / "val/instances.json").read_text())
    for category, name in zip(content["categories"], NAMES, strict=False):
        category["name"] = name
    ids = [category["id"] for category in content["categories"]]
    third, fifth = (content["videos"][index]["id"] for index in (2, 4))
    results = []
    for annotation in content["annotations"]:
        category, video = annotation["category_id"], annotation["video_id"]
        if video == fifth:
            continue
        if video == third:
            annotation["category_id"] = ids[0]
            category = ids[1]
        results.append({"video_id": video, "category_id": category, "score": 0.9,
                        "segmentations": annotation["segmentations"]})  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data/JPEGImages").symlink_to(digits / "val/JPEGImages")
    (tmp_path / "data/instances.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path / "data", tmp_path / "results.json"


def test_page(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, results = files
    file = tmp_path / "new/page.html"
    words = ["--data", str(data), "--results", str(results), "--html", str(file)]
    evaluate([*words, "--errors"])
    shown = capsys.readouterr().out
    assert re.search(r"^confused most: .* taken for ", shown, re.MULTILINE)
    assert re.search(r"^missed  +[1-9]", shown, re.MULTILINE)
    page = Page(file.read_text(encoding="utf-8"))
    videos = [int(number) for number in re.findall(r"Video (\d+): quality", page.text)]
    assert (len(videos), len(page.alt)) == (6, 6)
    assert sorted(videos[:2]) == sorted(
        video["id"] for video in json.loads((data / "instances.json").read_text())["videos"][2:5:2]
    )
    assert f"\u2068{NAMES[0]}\u2069) is taken for result" in page.text
    assert NAMES[1] in page.text
    assert "is missed: it is in frame" in page.text
    for link in page.links:
        assert link.startswith("data:image/webp;base64,")
        Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).verify()
    assert not re.search(r"https?:|@import|url\(", file.read_text(encoding="utf-8"))

    before = file.read_bytes()
    evaluate([*words, "--threshold", "1"])  # a page may be written over
    assert "Results with a score from 1: 0." in Page(file.read_text(encoding="utf-8")).text
    assert file.read_bytes() != before


def test_page_is_whole_or_not_there(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, results = files
    file = tmp_path / "page.html"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("defvis.errors.page.save_strip", fail)
    with pytest.raises(SystemExit, match=r"cannot write .*page.html: No space left"):
        evaluate(["--data", str(data), "--results", str(results), "--html", str(file)])
    assert not list(tmp_path.glob("page*"))
