"""Trains a small Deformable VisTR: video instance segmentation with spatio-temporal attention.

    python examples/train_defvis.py

Without arguments this writes a dataset of moving handwritten digits, trains on it from random
weights, and validates on handwriting it has not seen; eleven to fifteen minutes on two CPU cores.
Then look at runs/digits/curves.png and runs/digits/overlays/.

To train on your own YouTube-VIS data, give its folder:

    python examples/train_defvis.py --data youtube-vis --out runs/mine --short-side 180 --flip 0.5

On several GPUs or machines the same through torchrun, which starts one process for each:

    torchrun --nproc-per-node 4 examples/train_defvis.py --preset paper --data youtube-vis

With --shard they share out the model, for one that does not fit one GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Only light imports here: --help must answer at once.
from defvis.config import Config
from defvis.config_io import override
from defvis.data.digits import DEFAULT_LEVEL, LEVELS
from defvis.presets import PRESETS, preset

if TYPE_CHECKING:
    from defvis.data.ytvis import YouTubeVIS
    from defvis.training.distributed import World

_DIGITS = Path("runs/digits-data")
# Without annotated validation videos, every n-th training video is held out.
_HOLD_OUT = 10


def main(words: Sequence[str] | None = None) -> None:
    """Reads the command line, prepares the data, trains."""
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        config = _config(arguments)
    except ValueError as error:
        parser.error(str(error))
    if arguments.print_config:
        print(config)
        return

    # Threads that spin while they wait make a busy machine many times slower, not just busier.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from defvis.data.ytvis import DataError
    from defvis.training.distributed import join
    from defvis.training.trainer import Trainer

    try:
        torch.device(arguments.device or "cpu")
    except RuntimeError as error:
        parser.error(f"--device: {str(error).splitlines()[0]}")
    if arguments.shard and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        parser.error("--shard needs at least 2 processes, started by torchrun, got 1")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with (
        join(arguments.device, arguments.shard) as world,
        tempfile.TemporaryDirectory() as scratch,
    ):
        out, resume = arguments.out, arguments.resume
        if arguments.profile:
            out, resume = Path(scratch), False  # A run in --out is left alone.
        try:
            train, val = _data(arguments, world)
            model = dataclasses.replace(config.model, num_classes=train.num_classes)
            config = dataclasses.replace(config, model=model)
            trainer = Trainer(config, train, val, out, resume, world=world)
            if world.is_main:
                print(
                    f"{len(train.videos)} training and {len(val.videos)} validation videos, "
                    f"{train.num_classes} classes, {trainer.num_parameters:,} parameters, "
                    f"{world.size} processes on {world.device.type}, "
                    f"{torch.get_num_threads()} threads"
                )
                if trainer.weights_report is not None:
                    print(trainer.weights_report)
        except (DataError, FileExistsError, RuntimeError, ValueError) as error:
            sys.exit(f"train_defvis: {error}")
        try:
            if arguments.profile:
                print(trainer.profile(arguments.profile))
                return
            ap = trainer.train()
        except DataError as error:  # Pixels are only read when they are needed.
            # A loader's worker puts its traceback before it.
            sys.exit(f"train_defvis: {str(error).strip().splitlines()[-1]}")
        if world.is_main:
            print(f"validation, {len(val.videos)} videos: {ap}")
            print(f"written to {out}: curves.png, overlays/, metrics.json, results.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        help="folder with train/ and val/, each holding JPEGImages/ and instances.json (or "
        f"annotations.json); without a val/ every {_HOLD_OUT}th training video is held out "
        f"(default: digits, written to {_DIGITS} if missing)",
    )
    data.add_argument(
        "--level",
        choices=sorted(LEVELS),
        help=f"difficulty of the digits in {_DIGITS} (default: {DEFAULT_LEVEL})",
    )
    data.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="resize frames to this short side (default: keep their size)",
    )
    data.add_argument("--flip", type=float, metavar="P", help="probability of mirrored clips")
    data.add_argument("--workers", type=int, help="processes that load clips (default: 0)")

    train = parser.add_argument_group("training")
    train.add_argument(
        "--preset", default="small", choices=sorted(PRESETS), help="all numbers (default: small)"
    )
    train.add_argument("--steps", type=int, help="steps of joint training")
    train.add_argument(
        "--backbone-steps",
        type=int,
        help="steps of the stage that trains the backbone alone; 0 for a backbone with weights",
    )
    train.add_argument(
        "--epochs", type=int, help="passes over the training videos, instead of --steps"
    )
    train.add_argument("--batch-size", type=int, help="clips per step in each process")
    train.add_argument(
        "--accumulation", type=int, help="parts a batch is computed in, to save memory"
    )
    train.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], help="of the model's arithmetic"
    )
    train.add_argument("--frames", type=int, help="frames per training clip")
    train.add_argument("--slots", type=int, help="object slots per clip")
    train.add_argument(
        "--backbone",
        metavar="NAME",
        help="transformers model name or folder with weights, for example microsoft/resnet-50",
    )
    train.add_argument(
        "--weights",
        metavar="FILE",
        help="start from a state dict of VisTR, Deformable DETR, a torchvision ResNet or a run",
    )
    train.add_argument("--seed", type=int, help="of weights, order and augmentation")
    train.add_argument("--device", default="", help="cpu or cuda (default: cuda if there is some)")
    train.add_argument(
        "--shard",
        action="store_true",
        help="share out weights, gradients and optimiser state over torchrun's processes, at least "
        "2, instead of a copy for each: for models that do not fit one device",
    )
    train.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any other number of the preset, for example optim.learning_rate=5e-4; repeatable",
    )
    train.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="STEPS",
        help="measure the parts of so many steps of joint training and the memory, and stop",
    )
    train.add_argument("--print-config", action="store_true", help="print all numbers and stop")

    out = parser.add_argument_group("output")
    out.add_argument(
        "--out",
        type=Path,
        default=Path("runs/digits"),
        help="folder for log, checkpoints, figures and pictures (default: runs/digits)",
    )
    out.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out, if any"
    )
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    """The preset with the command line's changes."""
    config = preset(arguments.preset)
    named = {
        "steps": arguments.steps,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "accumulation": arguments.accumulation,
        "precision": arguments.precision,
        "seed": arguments.seed,
        "backbone_stage.steps": arguments.backbone_steps,
        "model.num_frames": arguments.frames,
        "model.num_slots": arguments.slots,
        "model.backbone.name": arguments.backbone,
        "weights": arguments.weights,
        "data.short_side": arguments.short_side,
        "data.flip": arguments.flip,
        "data.workers": arguments.workers,
    }
    changes = [f"{path}={value}" for path, value in named.items() if value is not None]
    for assignment in changes + arguments.set:
        config = override(config, assignment)
    return config


def _data(arguments: argparse.Namespace, world: World) -> tuple[YouTubeVIS, YouTubeVIS]:
    """Loads training and validation videos; writes the digits first where they are the data."""
    from defvis.data.digits_dataset import DigitsSettings, write_digits, written_level
    from defvis.data.ytvis import find_files, hold_out, load

    root = arguments.data
    if root is None:
        root = _DIGITS
        if world.is_main and not root.exists():
            write_digits(root, DigitsSettings(level=arguments.level or DEFAULT_LEVEL))
        world.gather(None)  # The others wait until they are written.
        if arguments.level not in (None, written_level(root)):
            raise FileExistsError(
                f"{root} holds digits of level {written_level(root)}, not {arguments.level}; "
                "remove it, or write others with make_digits.py and give them as --data"
            )
    train = load(*find_files(root / "train"))
    if not (root / "val").is_dir():
        return hold_out(train, _HOLD_OUT)
    return train, load(*find_files(root / "val"))


if __name__ == "__main__":
    main()
