"""The digits dataset: reproducible, well formed, disjoint handwriting, all phenomena present."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from defvis.data import rle
from defvis.datasets.digits import LEVELS, MOTIONS, draw_scene
from defvis.datasets.digits_dataset import DigitsSettings, handwriting, write_digits
from defvis.datasets.digits_render import Renderer
from defvis.programs import only_run_in


def _written(root: Path, videos: int, seed: int = 0) -> dict[str, str]:
    """Writes a small dataset and returns the hash of each file."""
    settings = DigitsSettings(videos, 2, frames=2, height=40, width=48, seed=seed)
    write_digits(root, settings, progress=False)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first = _written(tmp_path / "a", 3)
    assert len(first) == 2 * (3 + 2) + 2 + 1
    assert first == _written(tmp_path / "b", 3)
    other = _written(tmp_path / "c", 3, seed=1)
    assert all(first[name] != other[name] for name in first)


def test_more_videos_keep_the_first_ones(tmp_path: Path) -> None:
    few, many = _written(tmp_path / "few", 2), _written(tmp_path / "many", 4)
    assert all(few[name] == many[name] for name in few if name.endswith(".jpg"))


def test_format(digits: Path) -> None:
    for split, count in (("train", 24), ("val", 6)):
        content = json.loads((digits / split / "instances.json").read_text())
        assert [video["id"] for video in content["videos"]] == list(range(1, count + 1))
        assert [category["id"] for category in content["categories"]] == list(range(1, 11))
        annotations = content["annotations"]
        assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
        for annotation in annotations:
            assert annotation["segmentations"] != [None] * 4
            for segmentation, bbox, area in zip(
                annotation["segmentations"], annotation["bboxes"], annotation["areas"], strict=True
            ):
                if segmentation is None:
                    assert (bbox, area) == (None, None)
                    continue
                mask = rle.decode(rle.to_rle(segmentation, 48, 64))
                rows, columns = np.nonzero(mask)
                assert area == mask.sum()
                left, top = columns.min(), rows.min()
                assert bbox == [left, top, columns.max() - left + 1, rows.max() - top + 1]


def test_handwriting_is_disjoint(digits: Path) -> None:
    labels = load_digits().target
    train, val = (set(handwriting(split, labels).tolist()) for split in ("train", "val"))
    for split, allowed in (("train", train), ("val", val)):
        content = json.loads((digits / split / "instances.json").read_text())
        assert {annotation["digit_image"] for annotation in content["annotations"]} <= allowed
    assert not train & val
    assert len(train | val) == 1797
    assert {int(labels[index]) for index in val} == set(range(10))


@pytest.fixture(scope="module")
def scenes() -> list[tuple[object, np.ndarray]]:
    """Scenes of the default level with their visible masks [G, T, H, W]."""
    digits = load_digits()
    renderer = Renderer(digits.images, 64, 96)
    level = LEVELS[DigitsSettings().level]
    drawn = []
    for seed in range(150):
        random = np.random.default_rng(seed)
        scene = draw_scene(
            random, level, np.arange(1797), digits.target, 6, 64, 96, renderer.num_textures
        )
        drawn.append((scene, renderer.render(scene, random)[1]))
    return drawn


def test_phenomena_of_the_default_level(scenes: list[tuple[object, np.ndarray]]) -> None:
    late = early = returned = overlapping = twins = 0
    motions = set()
    for scene, masks in scenes:
        for digit, frames in zip(scene.digits, masks.any((2, 3)), strict=True):
            motions.add(digit.motion)
            if digit.motion == "behind":
                gaps = "".join("x" if seen else "." for seen in frames).strip(".")
                returned += "x." in gaps and ".x" in gaps
            late += digit.motion == "enter" and not frames[0] and frames[-1]
            early += digit.motion == "leave" and frames[0] and not frames[-1]
        boxes = [frames.any((0, 1)) for frames in masks]
        overlapping += any((a & b).any() for i, a in enumerate(boxes) for b in boxes[:i])
        pairs = [(a, b) for i, a in enumerate(scene.digits) for b in scene.digits[:i]]
        twins += any(a.label == b.label and (a.colour == b.colour).all() for a, b in pairs)
        for i, a in enumerate(masks):
            for b in masks[:i]:
                assert not (a & b).any(), "a pixel belongs to one digit"
    assert motions == set(MOTIONS)
    assert returned >= 10
    assert late >= 5
    assert early >= 5
    assert overlapping >= 30
    assert twins >= 5


def test_nearer_digits_hide_farther_ones(scenes: list[tuple[object, np.ndarray]]) -> None:
    """Without the others, every digit shows at least the pixels it shows among them."""
    digits = load_digits()
    renderer = Renderer(digits.images, 64, 96)
    hidden = 0
    for scene, masks in scenes[:40]:
        for row, digit in enumerate(scene.digits):
            alone = type(scene)(
                (digit,), None, scene.texture, scene.tint, scene.pan, scene.brightness
            )
            whole = renderer.render(alone, np.random.default_rng(0))[1][0]
            assert not (masks[row] & ~whole).any()
            lost = (whole & ~masks[row]).sum()
            if row == len(scene.digits) - 1 and scene.pillar is None:
                assert lost == 0, "the nearest digit is never hidden"
            hidden += lost > 0
    assert hidden >= 10


def test_existing_folder_and_bad_settings_are_refused(digits: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        write_digits(digits, DigitsSettings(), progress=False)
    with pytest.raises(ValueError, match=r"level must be one of .* got 'brutal'"):
        DigitsSettings(level="brutal")
    with pytest.raises(ValueError, match=r"height must be 32 to 400 pixels.* got 8"):
        DigitsSettings(height=8)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        DigitsSettings(frames=0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        DigitsSettings(seed=-1)


def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on a full disk nor beside another run that writes the same."""
    root = tmp_path / "digits"
    with only_run_in(tmp_path / "digits.partial"):
        with pytest.raises(FileExistsError, match=r"another run is writing to .*partial"):
            _written(root, 1)
        assert (tmp_path / "digits.partial").exists()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(OSError, match="No space left"):
        _written(root, 1)
    assert not list(tmp_path.iterdir())
