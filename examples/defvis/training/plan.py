"""What a run does with a dataset: numbers that fit it, and a table of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from defvis.config import Config
from defvis.config_io import flatten, override
from defvis.data.paste import MOST_OBJECTS, MOST_VIDEOS
from defvis.data.resize_crop import network_size
from defvis.inspection.colours import ColourGuess
from defvis.inspection.survey import Spread, Survey
from defvis.pretrained.fit import fit_config

# Pixels across a typical object that the network is shown; the least and the largest short side
# that is chosen for that, a multiple of the last.
_OBJECT, _LEAST_SIDE, _MOST_SIDE, _SIDE_STEP = 40, 96, 240, 8
_MOST_FRAMES, _POINTS_PER_FRAME = 6, 2
_LEAST_SLOTS = 10
# How often each frame is shown in the backbone stage and each video in the joint stage, and the
# fewest and most steps for that.
_FRAME_VIEWS, _BACKBONE_STEPS = 40, (200, 1000)
_VIDEO_VIEWS, _JOINT_STEPS = 32, (400, 3000)
_VALIDATIONS = 3  # before the last
# A mirrored, a reversed or a recoloured object may be of another class. What is left keeps it; and
# colours are exchanged in this share of the clips where they hardly tell the classes.
_EXCHANGED = 0.8
_AUGMENTATION = {
    "data.flip": 0.0,
    "data.reverse": 0.0,
    "data.paste": 1.0,
    "data.brightness": 0.3,
}
_UNLIKE = {
    "data.flip": "mirrored",
    "data.reverse": "played backwards",
    "data.permute_channels": "with exchanged colours",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Numbers of a run for a dataset.

    Attributes:
        config: All numbers.
        reasons: Why a field has its value, by its name as `--set` takes it.
        otherwise: The reason of all other fields.
        notes: What was changed to fit a file of weights, in words.
    """

    config: Config
    reasons: Mapping[str, str]
    otherwise: str
    notes: tuple[str, ...] = ()


def fit_to_data(plan: Plan, survey: Survey, colours: ColourGuess, most: int) -> Plan:
    """Chooses numbers by what is in the training videos; fields with a reason keep their value.

    Args:
        plan: The numbers to start from.
        survey: Of the training videos.
        colours: Likewise.
        most: The most objects in any clip of `model.num_frames` frames of them.
    """
    config, reasons = plan.config, dict(plan.reasons)

    def choose(name: str, value: Any, reason: str) -> None:
        nonlocal config
        if name not in reasons:
            config = override(config, f"{name}={json.dumps(value)}")
            reasons[name] = reason

    choose("data.short_side", *_short_side(survey))
    longest = round(survey.lengths.most)
    choose("model.num_frames", min(longest, _MOST_FRAMES), f"videos have {_span(survey.lengths)}")
    room = most + MOST_OBJECTS * MOST_VIDEOS
    choose("model.num_slots", max(_LEAST_SLOTS, 2 * most, room), f"up to {most} objects in a clip")
    if not config.model.coarser_points:  # Else how levels share the points is chosen already.
        levels = config.model.levels
        points = max(1, _POINTS_PER_FRAME * config.model.num_frames // levels)
        reason = f"{_POINTS_PER_FRAME} for each frame of a clip"
        choose("model.num_points", points, reason + f", on {levels} levels" * (levels > 1))
    steps = _FRAME_VIEWS * survey.frames // config.backbone_stage.frames_per_step
    choose("backbone_stage.steps", _within(steps, _BACKBONE_STEPS), f"{survey.frames:,} frames")
    steps = _VIDEO_VIEWS * survey.videos // config.batch_size
    choose("steps", _within(steps, _JOINT_STEPS), f"{survey.videos:,} videos")
    choose("eval_every", -(-config.steps // (_VALIDATIONS + 1)), "")
    if config.model.num_slots < room:
        choose("data.paste", 0.0, "the slots have no room for more objects")
    choose(
        "data.permute_channels",
        _EXCHANGED if colours.says_little else 0.0,
        f"colours guess {colours.right:.0%} of the classes, chance {colours.chance:.0%}",
    )
    for name, value in _AUGMENTATION.items():
        choose(name, value, "keeps the class" if value else "may make another class of an object")
    return Plan(config, reasons, plan.otherwise)


def fit_to_weights(plan: Plan, fixed: Collection[str]) -> Plan:
    """Takes the sizes of the model from the file in `config.weights`.

    Args:
        plan: The numbers.
        fixed: Names of the fields that keep their value.

    Raises:
        CheckpointError: If the file cannot be read.
        ValueError: If nothing in it is known, or it does not fit to the fields that stay.
    """
    fitted, notes = fit_config(plan.config, Path(plan.config.weights), fixed)
    before, after = (flatten(config.to_dict()) for config in (plan.config, fitted))
    changed = [name for name, value in after.items() if value != before[name]]
    reasons = {**plan.reasons, **dict.fromkeys(changed, "as the weights")}
    return Plan(fitted, reasons, plan.otherwise, tuple(notes))


def table(plan: Plan, survey: Survey, joint_steps: int) -> str:
    """What a run will do: for each part its numbers, why, and what changes them.

    Args:
        plan: The numbers.
        survey: Of the training videos.
        joint_steps: Steps of the joint stage.
    """
    config, model, stage = plan.config, plan.config.model, plan.config.backbone_stage
    (frame, _), *_ = survey.sizes
    height, width = network_size(*frame, config.data)
    first = f"{stage.steps:,} steps of {stage.frames_per_step} frames" if stage.steps else "none"
    rows = [
        ("input", f"{height} x {width} pixels", "data.short_side"),
        ("clip", f"{model.num_frames} frames", "model.num_frames"),
        ("slots", f"{model.num_slots} objects at most", "model.num_slots"),
        (
            "points",
            " + ".join(map(str, model.points_per_level)) + " for each head",
            "model.num_points",
        ),
        ("backbone stage", first, "backbone_stage.steps"),
        (
            "joint stage",
            f"{joint_steps:,} steps of {config.batch_size} clips",
            "epochs" if config.epochs else "steps",
        ),
        *(("augmentation" * (not i), *row) for i, row in enumerate(_augmentation(config))),
    ]
    cells = [("", "", "reason", "change it with")]
    for part, value, name in rows:
        reason = plan.reasons.get(name, plan.otherwise)
        cells.append((part, value, reason, f"--set {name}={_written(config, name)}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _augmentation(config: Config) -> list[tuple[str, str]]:
    """Each change of the clips, in words, and its field."""
    data = config.data
    often = f" in {data.recolour:.0%} of the clips" if data.recolour < 1 else ""
    words = {
        "data.crop": f"a window of {data.crop:.0%} of the clips",
        "data.flip": f"{data.flip:.0%} of the clips mirrored",
        "data.reverse": f"{data.reverse:.0%} played backwards",
        "data.paste": f"objects of other videos in {data.paste:.0%}",
        "data.permute_channels": f"{data.permute_channels:.0%} with exchanged colours",
        **{
            f"data.{name}": f"{name} up to {getattr(data, name):.0%}{often}"
            for name in ("brightness", "contrast", "saturation")
        },
        "data.hue": f"hue up to {data.hue:g} degrees{often}",
    }
    values = flatten(config.to_dict())
    rows = [(text, name) for name, text in words.items() if values[name]]
    unused = [(f"no clip {word}", name) for name, word in _UNLIKE.items() if not values[name]]
    return rows + unused


def _short_side(survey: Survey) -> tuple[int, str]:
    size, native = survey.object_sizes.median, round(survey.short_sides.median)
    wanted = _OBJECT / size if size else _MOST_SIDE
    wanted = -(-wanted // _SIDE_STEP) * _SIDE_STEP
    side = min(native, _within(round(wanted), (_LEAST_SIDE, _MOST_SIDE)))
    return side, f"of {native}; an object is about {size * side:.0f} pixels wide"


def _within(number: int, limits: tuple[int, int]) -> int:
    return min(max(number, limits[0]), limits[1])


def _span(spread: Spread) -> str:
    least, most = round(spread.least), round(spread.most)
    return f"{most} frames" if least == most else f"{least} to {most} frames"


def _written(config: Config, name: str) -> str:
    return json.dumps(flatten(config.to_dict())[name])
