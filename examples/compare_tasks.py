r"""Trains deformable and dense attention on five small tasks, to see which kind learns which.

    python examples/compare_tasks.py --out runs/tasks

In each task, the cells of a clip have to say the value of other cells. The tasks differ in what
tells where these are: a place that is always the same, a number in the cell, the look of the cells;
or nothing, as all of them count. The network is the encoder of `small`, narrower. Every batch is
new, so the training error is that of unseen clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

# Only light imports here: --help must answer at once.
from defvis.arguments import say, whole_number
from defvis.programs import one_line_errors, only_run_in, prepare_training_on_cpu


def main(argv: Sequence[str] | None = None) -> None:
    """Trains all, writes the curves and draws them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON and picture")
    parser.add_argument("--steps", type=whole_number(100), default=600, help="(600)")
    parser.add_argument("--seeds", type=whole_number(1), default=3, help="how many (3)")
    args = parser.parse_args(argv)
    prepare_training_on_cpu()
    with one_line_errors("compare_tasks"), only_run_in(args.out):
        from defvis.comparisons.tasks import TASKS, compare, draw, to_rows

        found = {}
        for task in TASKS:
            found[task] = compare(task, args.steps, args.seeds, say)
            (args.out / "tasks.json").write_text(json.dumps(found) + "\n")
        draw(found, args.out / "tasks.png")
        say("\n".join(f"| {task} | {cells} |" for task, cells in to_rows(found).items()))


if __name__ == "__main__":
    main()
