"""What the tests of the training example share: the package on the path, tiny data, tiny model."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from defvis.config import BackboneConfig, Config, ModelConfig  # noqa: E402
from defvis.data.clips import Targets  # noqa: E402
from defvis.data.digits_dataset import DigitsSettings, write_digits  # noqa: E402
from defvis.data.ytvis import find_files, load  # noqa: E402


@pytest.fixture(scope="session")
def examples_folder() -> Path:
    """Where the example programs lie."""
    return EXAMPLES


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small sums are slower in several threads, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written dataset: 24 training and 6 validation videos of 4 frames."""
    root = tmp_path_factory.mktemp("data") / "digits"
    # At most three digits: as many as `tiny_model` has slots.
    settings = DigitsSettings(24, 6, frames=4, height=48, width=64, level="mixed")
    write_digits(root, settings, progress=False)
    return root


@pytest.fixture(scope="session")
def program() -> Callable[[str], Callable[[list[str]], None]]:
    """A function that returns the main function of an example program."""

    def find(name: str) -> Callable[[list[str]], None]:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        main: Callable[[list[str]], None] = module.main
        return main

    return find


@pytest.fixture(scope="session")
def tiny_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a few steps on `digits`."""
    from defvis.models.model import DefVIS
    from defvis.training.trainer import Trainer

    torch.manual_seed(0)
    model = dataclasses.replace(tiny_model(), num_classes=10)
    stage = dataclasses.replace(Config().backbone_stage, steps=1, frames_per_step=2)
    folder = tmp_path_factory.mktemp("runs")
    start = DefVIS(model)
    with torch.no_grad():
        # Two steps are too few for masks that are not empty: they start as patches of the frame.
        start.mask_head.controller.weight[-9:].normal_()
        start.mask_head.controller.bias[-1] = 0.3
    torch.save(start.state_dict(), folder / "start.pt")
    settings = dataclasses.replace(
        Config(), model=model, backbone_stage=stage, steps=2, batch_size=2, eval_every=0,
        weights=str(folder / "start.pt"),
    )  # fmt: skip
    out = folder / "tiny"
    train, val = (load(*find_files(digits / split)) for split in ("train", "val"))
    Trainer(settings, train, val, out, progress=False).train()
    return out


@pytest.fixture(scope="session")
def launch(examples_folder: Path) -> Callable[..., subprocess.Popen[str]]:
    """A function that starts an example program as a user does, with warnings as errors."""

    def start(*words: str, module: Sequence[str] = ()) -> subprocess.Popen[str]:
        paths = [str(examples_folder.parent), os.environ.get("PYTHONPATH", "")]
        program, *arguments = words
        return subprocess.Popen(
            [sys.executable, "-W", "error", *module, str(examples_folder / program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )

    return start


@pytest.fixture
def config() -> Config:
    """A model small enough to run in milliseconds."""
    return dataclasses.replace(Config(), model=tiny_model())


def tiny_model() -> ModelConfig:
    """Sizes of that model."""
    return ModelConfig(
        backbone=BackboneConfig(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1)),
        num_classes=3,
        num_frames=4,
        num_slots=3,
        embed_dim=24,
        num_heads=2,
        num_points=5,
        encoder_layers=1,
        decoder_layers=2,
        feedforward_dim=32,
        mask_dim=8,
    )


def square(visible: list[bool], size: int = 32, left: int = 4, side: int = 12) -> torch.Tensor:
    """Masks [T, size, size] of a square, present where `visible` says so."""
    masks = torch.zeros(len(visible), size, size, dtype=torch.bool)
    for frame, seen in enumerate(visible):
        if seen:
            masks[frame, 8 : 8 + side, left + frame : left + frame + side] = True
    return masks


@pytest.fixture
def make_targets():  # type: ignore[no-untyped-def]
    """A function that builds targets from labels and masks, as the loader does."""
    from defvis.data.boxes import boxes_of_masks

    def make(labels: list[int], masks: list[torch.Tensor], frames: int = 4) -> Targets:
        stacked = torch.stack(masks) if masks else torch.zeros(0, frames, 32, 32, dtype=torch.bool)
        return Targets(
            labels=torch.tensor(labels, dtype=torch.int64),
            boxes=boxes_of_masks(stacked),
            masks=stacked,
            valid=stacked.flatten(2).any(-1),
        )

    return make


@pytest.fixture
def square_masks():  # type: ignore[no-untyped-def]
    """The function `square`."""
    return square
