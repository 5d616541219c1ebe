"""Numbers for a dataset, the table of them, and the time that the run is said to take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defvis.config import Config
from defvis.config_io import flatten
from defvis.data.ytvis import find_files, load
from defvis.inspection.colours import ColourGuess
from defvis.inspection.survey import Spread, Survey, survey
from defvis.presets import preset
from defvis.training.pace import Pace
from defvis.training.plan import Plan, fit_to_data, table
from defvis.training.trainer import Trainer
from tests.examples.support import TINY_RUN, as_words, changed, program


@pytest.fixture
def seen(digits: Path) -> Survey:
    return survey(load(*find_files(digits / "train")))


def always(number: float) -> Spread:
    return Spread(number, number, number, number, number)


TELLING, SILENT = ColourGuess(0.9, 0.5, 1.0, 100), ColourGuess(0.5, 0.5, 0.1, 100)


def planned(
    seen: Survey, colours: ColourGuess = TELLING, most: int = 3, **fixed: str
) -> dict[str, object]:
    plan = Plan(Config(), fixed, "preset")
    return flatten(fit_to_data(plan, seen, colours, most).config.to_dict())


def test_numbers_follow_the_data(seen: Survey) -> None:
    film = replace(
        seen, videos=200, frames=20_000, lengths=always(100), sizes=(((1080, 1920), 200),),
        short_sides=always(1080), object_sizes=always(0.25),
    )  # fmt: skip
    values = planned(film, most=12)
    assert values["data.short_side"] == 160, "a quarter of it is 40 pixels"
    assert (values["model.num_frames"], values["model.num_points"]) == (6, 12)
    assert values["model.num_slots"] == 24
    assert (values["backbone_stage.steps"], values["steps"]) == (1000, 1600)
    few = planned(replace(film, videos=60, frames=480, lengths=always(3)))
    assert (few["model.num_frames"], few["model.num_points"]) == (3, 6)
    assert (few["backbone_stage.steps"], few["steps"]) == (600, 480)
    assert planned(replace(film, short_sides=always(90)))["data.short_side"] == 90
    assert planned(replace(film, object_sizes=always(0.01)))["data.short_side"] == 240
    assert planned(replace(film, object_sizes=always(0)))["data.short_side"] == 240


@pytest.mark.parametrize(("coarser", "expected"), [(0, "4 + 4"), (3, "6 + 3")])
def test_levels_share_the_points(seen: Survey, coarser: int, expected: str) -> None:
    numbers = (f"model.coarser_points={coarser}", "model.num_frames=4")
    config = changed(preset("multiscale"), *numbers)
    plan = fit_to_data(Plan(config, {"model.num_frames": "as set"}, "x"), seen, TELLING, 3)
    assert f"points          {expected} for each head " in table(plan, seen, 3000)


def test_no_change_of_a_clip_may_change_a_class(seen: Survey) -> None:
    values = planned(seen)
    for name in ("flip", "reverse", "permute_channels", "hue", "saturation"):
        assert values[f"data.{name}"] == 0
    assert planned(seen, SILENT)["data.permute_channels"] == 0.8


def test_what_is_set_stays(seen: Survey) -> None:
    fixed = ("data.reverse", "steps", "model.num_slots", "model.num_frames")
    values, old = planned(seen, **dict.fromkeys(fixed, "as set")), flatten(Config().to_dict())
    assert {name: values[name] for name in fixed} == {name: old[name] for name in fixed}
    assert values["data.paste"] == 1
    assert planned(seen, most=9, **{"model.num_slots": "as set"})["data.paste"] == 0


def test_every_line_of_the_table_has_the_setting_that_changes_it(seen: Survey) -> None:
    lines = table(
        fit_to_data(Plan(Config(), {"steps": "as set"}, "x"), seen, TELLING, 3), seen, 3000
    )
    fields = flatten(Config().to_dict())
    settings = [re.search(r"--set (\S+)=\S+$", line) for line in lines.splitlines()[1:]]
    assert {found[1] for found in settings if found} >= {
        "data.short_side", "model.num_frames", "model.num_slots", "model.num_points", "steps",
        "backbone_stage.steps", "data.flip", "data.reverse", "data.permute_channels",
    }  # fmt: skip
    assert all(found is not None and found[1] in fields for found in settings)
    assert "3,000 steps of 4 clips" in lines


def test_measuring_leaves_no_trace(digits: Path, config: Config, tmp_path: Path) -> None:
    """The weights that a run begins with, and what chance decides later, stay the same."""
    train, val = (load(*find_files(digits / split)) for split in ("train", "val"))
    config = changed(config, "model.num_classes=10", "backbone_stage.steps=3", "steps=4",
                     "eval_every=2", "eval_videos=3", "batch_size=2")  # fmt: skip
    trainer = Trainer(config, train, val, tmp_path, progress=False)
    before = {name: value.clone() for name, value in trainer._model.state_dict().items()}
    random = torch.get_rng_state()
    pace = trainer.measure_pace()
    assert torch.equal(random, torch.get_rng_state())
    after = trainer._model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert pace.steps == {"backbone": 3, "joint": 4}
    assert pace.videos == 3 + len(val.videos), "the one in the middle, and the last"
    assert set(pace.minutes()) == {"backbone", "joint", "validation"}
    trainer.train()
    assert pace.steps == {"backbone": 0, "joint": 0}
    assert pace.videos == 0
    resumed = Trainer(replace(config, steps=7), train, val, tmp_path, resume=True, progress=False)
    assert resumed.pace.steps == {"backbone": 0, "joint": 3}
    assert resumed.pace.videos == 3 + len(val.videos), "after step 6, and the last"


def test_pace_in_words() -> None:
    pace = Pace({"backbone": 100, "joint": 600}, 30, {"backbone": 0.3, "joint": 1.0}, 2.0)
    assert str(pace) == "about 12 min (backbone 30 s, joint 10 min, validation 60 s)"
    assert str(Pace({"joint": 9000}, 1, {"joint": 1.0})) == "about 2.5 h (joint 2.5 h)"
    assert "joint not known yet" in str(Pace({"backbone": 9, "joint": 1}, 1, {"backbone": 1.0}))
    assert str(Pace({"joint": 1}, 1)) == "not known yet"


def test_program_goes_on_with_its_own_numbers(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--data", str(digits), "--out", str(out), "--resume"]
    tiny = as_words([*TINY_RUN, "backbone_stage.steps=0", "steps=1", "model.num_frames=2"])
    program("train_defvis")([*words, *tiny, "--infer", str(digits / "val/JPEGImages/00001")])
    printed = capsys.readouterr().out
    assert "2 for each frame of a clip" in printed
    film = Path(printed.splitlines()[-1].removeprefix("to look at: "))
    assert film.is_file()
    assert film.parent == out / "infer"
    program("train_defvis")([*words, "--set", "steps=2"])
    assert "as the run began" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"data\.flip is 0\.0 there and 0\.5 here"):
        program("train_defvis")([*words, "--set", "data.flip=0.5"])
