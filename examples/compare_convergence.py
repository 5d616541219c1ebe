r"""Trains several configs on the same data and draws how fast they learn, by steps and by time.

    python examples/compare_convergence.py --data runs/digits-data --out runs/comparison

Without further arguments, this compares deformable with dense attention, the claim of the paper.
For any other comparison, name the variants, each by what it changes in the preset:

    python examples/compare_convergence.py --data runs/digits-data --out runs/points \
        --variant K16 model.num_points=16 --variant K32 model.num_points=32 --seeds 0 1 2

All variants see the same clips in the same order (per seed) and take the same number of steps. A
finished run is not repeated, and an interrupted one is resumed. The times in the figure are those
of training steps alone, measured for all variants in turn after their runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

# Only light imports here: --help must answer at once.
from defvis.arguments import say, whole_number
from defvis.config import Config
from defvis.config_io import flatten, override
from defvis.presets import PRESETS, preset
from defvis.programs import one_line_errors, only_run_in, prepare_training_on_cpu

if TYPE_CHECKING:
    import torch

    from defvis.data.dataset import YouTubeVIS

WARM_UP = 2  # steps not measured, as in defvis.training.profiling, which is slow to import
HOLD_OUT = 10  # as in train_defvis
_DENSE = ["model.encoder_attention=dense", "model.decoder_attention=dense"]
_DEFAULT = [["deformable"], ["dense", *_DENSE]]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, measures, writes comparison.json, .md and .png."""
    parser = _parser()
    args = parser.parse_args(argv)
    named = args.variant or _DEFAULT
    # Fail now and not after the training.
    if args.timing_steps > args.steps - WARM_UP:
        parser.error(
            f"--timing-steps must be at most --steps - {WARM_UP}, {args.steps - WARM_UP}, "
            f"got {args.timing_steps}"
        )
    if len({name for name, *_ in named}) < len(named) or len(set(args.seeds)) < len(args.seeds):
        parser.error("the names of --variant and the --seeds must differ")
    for name, *_ in named:
        if Path(name).name != name or name.startswith("."):
            parser.error(f"the name of a --variant is part of a folder's name, got {name!r}")
    try:
        changes = {name: changes for name, *changes in named}
        configs = {
            (name, seed): _config(args, [*settings, f"seed={seed}"])
            for name, settings in changes.items()
            for seed in args.seeds
        }
    except ValueError as error:
        parser.error(str(error))

    prepare_training_on_cpu()
    import torch

    from defvis.decoding.errors import DataError
    from defvis.models.device import find_device
    from defvis.pretrained.tensor_file import CheckpointError

    torch.set_num_threads(args.threads)
    with one_line_errors("compare_convergence", DataError, CheckpointError), only_run_in(args.out):
        _compare(args, list(changes), configs, find_device(args.device))


def _compare(
    args: argparse.Namespace,
    names: list[str],
    configs: dict[tuple[str, int], Config],
    device: torch.device,
) -> None:
    """Does it all, once the command line is understood."""
    from defvis.comparisons.convergence import Variant, draw, measure, read_curve, to_json, to_table
    from defvis.data.splits import load_splits

    train, val, notes = load_splits(args.data, HOLD_OUT)
    for note in notes:
        say(note)
    configs = {
        key: dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, num_classes=train.num_classes),
            eval_videos=len(val.videos),
        )
        for key, config in configs.items()
    }
    missing = [key for key, config in configs.items() if not _is_done(args.out, key, config, train)]
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = [key for key, done in zip(
            missing,
            pool.map(lambda key: _train(args, key, configs[key], device), missing),
            strict=True,
        ) if not done]  # fmt: skip
    if failed:
        sys.exit(f"compare_convergence: failed: {', '.join(map(_name, failed))}")

    firsts = {name: configs[name, args.seeds[0]] for name in names}
    measured = measure(firsts, train, val, args.rounds, args.timing_steps, device)
    variants = {
        name: Variant(
            *measured[name],
            {seed: read_curve(args.out / _name((name, seed))) for seed in args.seeds},
        )
        for name in names
    }
    (args.out / "comparison.json").write_text(to_json(variants) + "\n")
    table = to_table(variants)
    (args.out / "comparison.md").write_text(table + "\n")
    draw(variants, args.out / "comparison.png")
    print(table)


def _parser() -> argparse.ArgumentParser:
    at_least_1 = whole_number(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/ and val/, as for train_defvis"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and results")
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS), help="what changes")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        metavar=("NAME", "FIELD=VALUE"),
        help="a name and what it changes of the preset; repeatable",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="changes all variants"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--steps", type=at_least_1, default=1000, help="of joint training (1000)")
    parser.add_argument("--backbone-steps", type=int, default=500, help="before them (500)")
    parser.add_argument("--eval-every", type=at_least_1, default=200, help="steps (200)")
    parser.add_argument("--threads", type=at_least_1, default=1, help="CPU threads of a run (1)")
    parser.add_argument("--jobs", type=at_least_1, default=1, help="runs at a time (1)")
    parser.add_argument(
        "--device",
        default="",
        help="where runs are trained and steps timed: cpu or cuda (default: cuda if available)",
    )
    parser.add_argument(
        "--rounds", type=at_least_1, default=3, help="of measuring a step's time (3)"
    )
    parser.add_argument("--timing-steps", type=at_least_1, default=10, help="steps in a round (10)")
    return parser


def _config(args: argparse.Namespace, changes: Sequence[str]) -> Config:
    config = preset(args.preset)
    shared = [
        *(f"steps={args.steps}", f"backbone_stage.steps={args.backbone_steps}"),
        f"eval_every={args.eval_every}",
    ]
    for change in [*shared, *args.set, *changes]:
        config = override(config, change)
    config.check()
    return config


def _name(key: tuple[str, int]) -> str:
    """The folder of a run."""
    return f"{key[0]}-{key[1]}"


def _is_done(out: Path, key: tuple[str, int], config: Config, train: YouTubeVIS) -> bool:
    """True if the run is finished; a run with other settings or data is a ValueError."""
    from defvis.pretrained.checkpoint_file import load_checkpoint
    from defvis.training.resume import check_resumed, differences, read_config

    folder = out / _name(key)
    if not (folder / "metrics.json").exists():
        return False
    file = folder / "checkpoint.pt"
    saved = load_checkpoint(file)
    other = list(differences(read_config(saved, file), config))
    if other:
        raise ValueError(f"{folder} holds a run with other settings: {'; '.join(other)}")
    check_resumed(file, saved, config, train, processes=1)
    return True


def _train(
    args: argparse.Namespace, key: tuple[str, int], config: Config, device: torch.device
) -> bool:
    """Trains one config with train_defvis in its own process."""
    before, after = (flatten(each.to_dict()) for each in (preset(args.preset), config))
    changes = [
        f"{path}={json.dumps(value)}" for path, value in after.items() if value != before[path]
    ]
    words = [
        *(sys.executable, str(Path(__file__).with_name("train_defvis.py")), "--resume"),
        *("--data", str(args.data), "--out", str(args.out / _name(key)), "--preset", args.preset),
        *("--device", str(device)),
        *(word for change in changes for word in ("--set", change)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    _say(f"{_name(key)}: begins")
    with (args.out / f"{_name(key)}.log").open("w") as output:
        done = subprocess.run(
            words, stdout=output, stderr=subprocess.STDOUT, check=False, env=environment
        )
    _say(f"{_name(key)}: {'done' if done.returncode == 0 else 'failed, see its log'}")
    return done.returncode == 0


def _say(line: str) -> None:
    """Prints a line in one write: runs at the same time would mix texts and ends of lines."""
    print(f"{line}\n", end="", flush=True)


if __name__ == "__main__":
    main()
