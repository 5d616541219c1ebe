"""Writes the digits dataset: handwritten digits that move, cross, hide and return, as YouTube-VIS.

    python examples/make_digits.py --out digits

The data are scikit-learn's digit images on scikit-image's textures; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from defvis.datasets.digits import LEVELS
from defvis.datasets.digits_dataset import DigitsSettings, write_digits
from defvis.programs import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and writes the dataset."""
    default = DigitsSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--level",
        choices=sorted(LEVELS),
        default=default.level,
        help="how hard: number and size of digits, share of entering, leaving, crossing and "
        f"hiding ones, look-alikes (default: {default.level})",
    )
    for name, text in (
        ("train-videos", "videos to train on"),
        ("val-videos", "videos to validate on, with other handwriting"),
        ("frames", "frames per video"),
        ("height", "frame height in pixels"),
        ("width", "frame width in pixels"),
        ("seed", "the same seed gives the same bytes"),
    ):
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default: {value})")
    args = vars(parser.parse_args(argv))
    out = args.pop("out")
    try:
        settings = DigitsSettings(**args)
    except ValueError as error:
        parser.error(str(error))
    with one_line_errors("make_digits"):
        write_digits(out, settings)


if __name__ == "__main__":
    main()
