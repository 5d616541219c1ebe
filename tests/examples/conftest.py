"""Fixtures of the example tests: one thread, a small dataset, a short run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from defvis.config import Config, DataConfig
from defvis.data.ytvis import find_files, load
from defvis.datasets.digits_dataset import DigitsSettings, write_digits
from defvis.models.model import DefVIS
from defvis.training.trainer import Trainer
from tests.examples.support import changed, tiny_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small sums are slower in several threads, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config() -> Config:
    """The default config with `tiny_model`, whose slots have no room for pasted objects."""
    return Config(model=tiny_model(), data=DataConfig(paste=0))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written dataset: 24 training and 6 validation videos of 4 frames."""
    root = tmp_path_factory.mktemp("data") / "digits"
    # At most three digits: as many as `tiny_model` has slots.
    settings = DigitsSettings(24, 6, frames=4, height=48, width=64, level="mixed")
    write_digits(root, settings, progress=False)
    return root


@pytest.fixture(scope="session")
def tiny_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a few steps on `digits`."""
    return _trained(digits, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def slots_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with learned slots, which do not depend on which cell an untrained model prefers."""
    return _trained(digits, tmp_path_factory.mktemp("runs"), "model.queries=slots")


def _trained(digits: Path, folder: Path, *changes: str) -> Path:
    torch.manual_seed(0)
    settings = changed(
        Config(model=tiny_model()), "model.num_classes=10", "backbone_stage.steps=1", "steps=2",
        "backbone_stage.frames_per_step=2", "batch_size=2", "eval_every=0",
        "data.paste=0", f"weights={folder / 'start.pt'}", *changes,
    )  # fmt: skip
    start = DefVIS(settings.model)
    with torch.no_grad():
        # Two steps are too few for masks that are not empty: they start as patches of the frame.
        start.mask_head.controller.weight[-9:].normal_()
        start.mask_head.controller.bias[-1] = 0.3
    torch.save(start.state_dict(), folder / "start.pt")
    train, val = (load(*find_files(digits / split)) for split in ("train", "val"))
    Trainer(settings, train, val, folder / "tiny", progress=False).train()
    return folder / "tiny"
