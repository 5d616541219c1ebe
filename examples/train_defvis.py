"""Trains a small Deformable VisTR: video instance segmentation with spatio-temporal attention.

    python examples/train_defvis.py

Without arguments this writes a dataset of moving handwritten digits, trains on it from random
weights, and validates on handwriting it has not seen; 12 to 25 minutes on two cores.
Then look at runs/digits/curves.png and runs/digits/overlays/.

To train on your own YouTube-VIS data, give its folder, and a video to try the model on:

    python examples/train_defvis.py --data youtube-vis --infer clip.mp4

Numbers that fit the data are chosen and printed with the settings that change them; --check-data
looks at the data only. --print-config lists every number that --set can change. On several GPUs or
machines, start it with torchrun:

    torchrun --nproc-per-node 4 examples/train_defvis.py --preset paper --data youtube-vis

With --shard the model is split over the processes, for models that do not fit one GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Only light imports here: --help must answer at once.
from defvis.arguments import say, whole_number
from defvis.config import Config
from defvis.config_io import flatten, override
from defvis.nearest import nearest
from defvis.presets import PRESETS, preset
from defvis.programs import (
    one_line_errors,
    only_run_in,
    prepare_folder,
    prepare_training_on_cpu,
)

if TYPE_CHECKING:
    from defvis.data.dataset import Video, YouTubeVIS
    from defvis.training.distributed import World

_DIGITS = Path("runs/digits-data")
# The preset to start from, and the reason of a resumed run's numbers.
_FIRST, _AS_BEGUN = "small", "as the run began"
# Without annotated validation videos, every n-th training video is held out.
_HOLD_OUT = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, prepares the data, trains."""
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_explain(unknown[0], preset(args.preset or _FIRST)))
    if args.out is None:
        args.out = _default_out(args.data)
    try:
        config, origin = _first_numbers(args)
        config.check()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.print_config:
        print(config)
        return

    prepare_training_on_cpu()
    from defvis.decoding.errors import DataError
    from defvis.inspection.check_data import CHECK_FILES
    from defvis.pretrained.tensor_file import CheckpointError
    from defvis.training.distributed import join

    expected = (CheckpointError, DataError, FloatingPointError)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_line_errors("train_defvis", *expected))
        if args.infer:
            _look_at(args.infer)
        try:
            world = stack.enter_context(join(args.device, args.shard))
        except ValueError as error:
            parser.error(str(error))
        out, resume = args.out, args.resume
        if args.profile:  # A run in --out is left alone.
            out, resume = Path(stack.enter_context(tempfile.TemporaryDirectory())), False
        elif args.check_data:  # Beside a run in --out.
            if world.size > 1:
                parser.error("--check-data needs one process, not torchrun")
            prepare_folder(out, CHECK_FILES)
        elif world.is_main:
            stack.enter_context(only_run_in(out))
        _run(parser, args, config, origin, world, out, resume)
    if args.infer and world.is_main and not (args.profile or args.check_data):
        _infer(args)


def _default_out(data: Path | None) -> Path:
    """A folder named like the data, but not the data's own."""
    if data is None:
        return Path("runs/digits")
    out = Path("runs") / (data.resolve().name or "own")
    return out.with_name(out.name + "-run") if out.resolve() == data.resolve() else out


def _first_numbers(args: argparse.Namespace) -> tuple[Config, str]:
    """The numbers before the data are seen, and where they are from: the run to go on, a preset."""
    config, origin = preset(args.preset or _FIRST), f"preset {args.preset or _FIRST}"
    written = args.out / "config.json"
    started = written.exists() and any(args.out.glob("checkpoint.pt*"))
    if args.resume and started and not args.preset:
        try:
            config, origin = Config.from_dict(json.loads(written.read_text())), _AS_BEGUN
        except ValueError as error:
            raise ValueError(f"{written} does not have the numbers of a run: {error}") from error
    for assignment in args.set:
        config = override(config, assignment)
    if args.weights:
        config = dataclasses.replace(config, weights=args.weights)
    return config, origin


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with train/ and val/ (or valid/, validation/, dev/), each holding JPEGImages/ "
        "and instances.json (or annotations.json), or a single such folder; without validation "
        f"videos every {_HOLD_OUT}th training video is held out "
        f"(default: digits, written to {_DIGITS} if missing)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for log, checkpoints, figures and pictures (default: runs/ and the name of "
        "the data's folder, runs/digits for the digits)",
    )
    parser.add_argument(
        "--check-data",
        action="store_true",
        help="read every picture and mask, print what is there and what is odd, draw clips as the "
        "model will see them to data-check.png in --out, and stop",
    )
    parser.add_argument(
        "--infer",
        type=Path,
        metavar="SOURCE",
        help="after training, track the objects of this video file or folder of pictures",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out, if any, with the numbers that it began with",
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help=f"all numbers as they are (default: {_FIRST}, with --data fitted to the videos)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a number of the preset, for example optim.learning_rate=5e-4; repeatable",
    )
    parser.add_argument("--print-config", action="store_true", help="print all numbers and stop")
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="start from a run (its folder or checkpoint), or from a file with the weights of a "
        "ResNet, VisTR or Deformable DETR; without --preset the model gets the file's sizes",
    )
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda if available)")
    parser.add_argument(
        "--shard",
        action="store_true",
        help="split weights, gradients and optimiser state over torchrun's processes, at least 2, "
        "instead of a copy for each: for models that do not fit one device",
    )
    parser.add_argument(
        "--profile",
        type=whole_number(1),
        default=0,
        metavar="STEPS",
        help="measure the parts of this many steps of joint training and the memory, and stop",
    )
    return parser


def _explain(word: str, config: Config) -> str:
    """Says how to set a number for which there is no option: --set data.flip=VALUE for --flip."""
    fields = nearest(flatten(config.to_dict()), word.partition("=")[0])
    spelled = " or ".join(f"--set {path}=VALUE" for path in fields)
    return f"unknown argument {word}; " + (
        f"use {spelled}" if spelled else "--set FIELD=VALUE changes a number, see --print-config"
    )


def _run(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    config: Config,
    origin: str,
    world: World,
    out: Path,
    resume: bool,
) -> None:
    """Looks at the data, trains or measures."""
    import torch

    from defvis.inspection.colours import guess_by_colour
    from defvis.inspection.survey import most_at_once, survey
    from defvis.training.pace import in_words
    from defvis.training.plan import Plan, fit_to_data, fit_to_weights, table
    from defvis.training.profiling import WARM_UP
    from defvis.training.stages import joint_steps
    from defvis.training.trainer import Trainer

    train, val, notes = _data(args.data, world)
    if world.is_main:
        for note in notes:
            say(note)
    if not args.check_data:
        _check_frames((*train.videos, *val.videos), world)
    seen = survey(train)
    fixed = dict.fromkeys((assignment.partition("=")[0] for assignment in args.set), "as set")
    plan = Plan(config, fixed, origin)
    if not args.preset and origin != _AS_BEGUN:
        if args.data:
            frames = config.model.num_frames
            most = max(most_at_once(video, frames) for video in train.videos)
            plan = fit_to_data(plan, seen, guess_by_colour(train), most)
        if plan.config.weights:
            plan = fit_to_weights(plan, fixed)
        plan.config.check()
    if args.check_data:
        _check_data(train, val, plan.config, out, notes)
        return
    steps = joint_steps(plan.config, len(train.videos), world.size)
    if args.profile and args.profile > steps - WARM_UP:
        parser.error(
            f"--profile must be at most {steps - WARM_UP}, the {steps} steps of the joint stage "
            f"without {WARM_UP} to warm up, got {args.profile}"
        )
    model = dataclasses.replace(plan.config.model, num_classes=train.num_classes)
    config = dataclasses.replace(plan.config, model=model)
    trainer = Trainer(config, train, val, out, resume, world=world)
    if world.is_main:
        print(
            f"{len(train.videos)} training and {len(val.videos)} validation videos, "
            f"{train.num_classes} classes, {trainer.num_parameters:,} parameters, "
            f"{world.size} process{'es' * (world.size > 1)} on {world.device.type}, "
            f"{torch.get_num_threads()} threads"
        )
        if trainer.weights_report is not None:
            for note in plan.notes:
                say(note)
            print(trainer.weights_report)
        print(table(plan, seen, steps))
    pace = trainer.measure_pace()
    if world.is_main:
        print(f"time: {pace}", flush=True)
    if args.profile:
        print(trainer.profile(args.profile))
        return
    begin = time.monotonic()
    try:
        ap = trainer.train()
    except KeyboardInterrupt:
        if (out / "checkpoint.pt").exists():
            advice = f"--resume goes on from the last checkpoint in {out}"
        else:
            advice = "there is no checkpoint yet"
        print(f"train_defvis: stopped; {advice}", file=sys.stderr)
        sys.exit(130)
    if world.is_main:
        print(f"validation, {len(val.videos)} videos: {ap}")
        print(f"written to {out}: curves.png, overlays/, metrics.json, results.json")
        print(f"took {in_words((time.monotonic() - begin) / 60)}")
        if args.data:
            print(
                "evaluate_defvis.py --errors --html says what is wrong; --resume with a larger "
                "--set steps=N trains longer"
            )


def _check_data(
    train: YouTubeVIS, val: YouTubeVIS, config: Config, out: Path, notes: Sequence[str]
) -> None:
    from defvis.inspection.check_data import check_data

    check = check_data(train, val, config, out, notes)
    say(check.text)
    if check.refused:
        sys.exit(1)


def _look_at(source: Path) -> None:
    """Opens what --infer names, before anything is trained for it."""
    from defvis.data.sources import open_source

    open_source(source, 1, keep=1)


def _infer(args: argparse.Namespace) -> None:
    """Tracks the objects of a video with the trained model; ends with the overlay's path."""
    from infer_defvis import main as infer

    out = args.out / "infer"
    shutil.rmtree(out / "unfinished", ignore_errors=True)  # Of another model.
    video = ["video"] * bool(importlib.util.find_spec("av"))
    device = ["--device", args.device] * bool(args.device)
    infer(["--run", str(args.out), "--source", str(args.infer), "--out", str(out),
           *device, "--write", "results", "webp", "sheet", *video])  # fmt: skip


def _check_frames(videos: Sequence[Video], world: World) -> None:
    """Looks at the frames in one process; an error ends all, and one of them says it."""
    from defvis.data.check import check_frames
    from defvis.decoding.errors import DataError

    problem = ""
    if world.is_main:
        try:
            check_frames(videos, progress=True)
        except DataError as error:
            problem = str(error)
    problem = world.gather(problem)[0]
    if problem and world.is_main:
        raise DataError(problem)
    if problem:
        sys.exit(1)


def _data(root: Path | None, world: World) -> tuple[YouTubeVIS, YouTubeVIS, tuple[str, ...]]:
    """Training and validation videos, and notes on them; first writes the digits if they are it."""
    from defvis.data.splits import load_splits
    from defvis.datasets.digits_dataset import DigitsSettings, write_digits

    if root is None:
        root = _DIGITS
        if world.is_main and not root.exists():
            write_digits(root, DigitsSettings())
        world.gather(None)  # The others wait until they are written.
    return load_splits(root, _HOLD_OUT, progress=world.is_main)


if __name__ == "__main__":
    main()
