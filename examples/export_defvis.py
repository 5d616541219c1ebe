"""Exports a trained model, frames to classes, boxes and masks, to run outside PyTorch.

    python examples/export_defvis.py --run runs/digits --out digits.onnx \
        --source runs/digits-data/val/JPEGImages/00001

The file is then compared with the original on frames of the source, at three sizes, and the program
fails if they differ. infer_defvis.py and evaluate_defvis.py take it with --onnx.

The inputs are "frames", normalised float32 [B, T, 3, H, W], and "padding_mask", bool [B, T, H, W],
True on padding. The outputs, of I slots, are "probabilities" [B, I, T, classes], "boxes"
[B, I, T, 4] (centre and size in fractions of the frame) and "mask_logits" [B, I, T, h, w], positive inside.
B, T, H and W are free; only a model with attention "frames" takes clips of the length that it was trained
on. The file also holds the numbers of the run and the names of the classes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

# Of an output's largest value, or of 1 if that is smaller: some hundred roundings of float32.
_BOUND = 1e-4


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, writes the file, compares."""
    args = _parser().parse_args(argv)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"export_defvis: needs {package}: pip install onnx onnxscript onnxruntime")
    # Only now: --help must answer at once.
    from defvis.data.sources import open_source
    from defvis.data.ytvis import DataError
    from defvis.export.compare import compare
    from defvis.export.onnx_model import load_onnx
    from defvis.export.to_onnx import write_onnx
    from defvis.training.checkpoint import CheckpointError
    from defvis.training.load_trained import load_trained

    try:
        source = open_source(args.source)
        trained = load_trained(args.run)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        nodes = write_onnx(trained, args.out, args.form)
        print(f"{args.out}: {nodes} nodes, {args.out.stat().st_size / 2**20:.1f} MiB", flush=True)
        exported = load_onnx(args.out).model
        differences = list(
            compare(
                exported.predict, trained.model, source, trained.config.data, exported.any_length
            )
        )
    except (CheckpointError, DataError, FileNotFoundError, ValueError) as error:
        sys.exit(f"export_defvis: {error}")
    print("largest differences from PyTorch:")
    for difference in differences:
        print(f"  {difference}")
    if not all(x <= _BOUND for difference in differences for x in difference.largest):
        sys.exit(f"export_defvis: {args.out} differs by more than {_BOUND:g} of the largest value")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of a training run, or its checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, .onnx")
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="folder of pictures, or a video file, to compare on",
    )
    parser.add_argument(
        "--form",
        choices=["grid_sample", "gather"],
        help="operations that the attention consists of (default: the faster ones in ONNX Runtime)",
    )
    return parser


if __name__ == "__main__":
    main()
