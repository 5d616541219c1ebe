r"""Exports a trained model, frames to classes, boxes and masks, to run outside PyTorch.

    python examples/export_defvis.py --run runs/digits --out digits.onnx \
        --source runs/digits-data/val/JPEGImages/00001

The file is then compared with the original on frames of the source, at three sizes, and the program
fails if they differ. infer_defvis.py and evaluate_defvis.py take it with --onnx.

The inputs are "frames", normalised float32 [B, T, 3, H, W], and "padding_mask", bool [B, T, H, W],
True on padding. The outputs, of I slots, are "probabilities" [B, I, T, classes], "boxes"
[B, I, T, 4] (centre and size in fractions of the frame) and "mask_logits" [B, I, T, h, w], positive
inside. B, T, H and W are free; only a model with attention "frames" takes clips of the length that
it was trained on. The file also holds the numbers of the run and the names of the classes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from defvis.programs import one_line_errors, prepare_folder

if TYPE_CHECKING:
    from defvis.data.dataset import Frames
    from defvis.export.compare import Difference
    from defvis.models.model import DefVIS
    from defvis.training.load_trained import TrainedModel

# Of an output's largest value, or of 1 if that is smaller: some hundred roundings of float32.
_BOUND = 1e-4


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, writes the file, compares."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.out.is_dir() or (args.format == "aoti" and args.out.suffix != ".pt2"):
        kind = "a file .pt2" if args.format == "aoti" else "a file"
        parser.error(f"--out must be {kind}, got {args.out}")
    needed = ("onnx", "onnxscript", "onnxruntime") if args.format == "onnx" else ()
    if any(importlib.util.find_spec(package) is None for package in needed):
        sys.exit(f"export_defvis: needs more packages: pip install {' '.join(needed)}")
    # Only now: --help must answer at once.
    from defvis.data.sources import open_source
    from defvis.decoding.errors import DataError
    from defvis.pretrained.tensor_file import CheckpointError
    from defvis.training.load_trained import load_trained

    with one_line_errors("export_defvis", CheckpointError, DataError):
        source = open_source(args.source)
        trained = load_trained(args.run)
        prepare_folder(args.out.parent)
        write = _write_onnx if args.format == "onnx" else _write_aoti
        differences = write(trained, source, args.out, args.form)
    print("largest differences from PyTorch:")
    for difference in differences:
        print(f"  {difference}")
    if not all(x <= _BOUND for difference in differences for x in difference.largest):
        sys.exit(f"export_defvis: {args.out} differs by more than {_BOUND:g} of the largest value")


def _write_onnx(
    trained: TrainedModel[DefVIS], source: Frames, path: Path, form: str | None
) -> list[Difference]:
    from defvis.export.compare import compare
    from defvis.export.onnx_model import load_onnx
    from defvis.export.to_onnx import write_onnx

    nodes = write_onnx(trained, path, form)
    print(f"{path}: {nodes} nodes, {path.stat().st_size / 2**20:.1f} MiB", flush=True)
    model = load_onnx(path).model
    return list(
        compare(model.predict, trained.model, source, trained.config.data, model.any_length)
    )


def _write_aoti(
    trained: TrainedModel[DefVIS], source: Frames, path: Path, form: str | None
) -> list[Difference]:
    import torch

    from defvis.data.resize_crop import network_size
    from defvis.export.compare import compare
    from defvis.export.to_aoti import write_aoti

    size = network_size(source.height, source.width, trained.config.data)
    any_length = write_aoti(trained, path, form, size)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, for frames of {size[0]} x {size[1]}")
    model = torch._inductor.aoti_load_package(str(path))
    return list(
        compare(model, trained.model, source, trained.config.data, any_length, any_size=False)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of a training run, or its checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write: .onnx or .pt2")
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="folder of pictures, or a video file, to compare on",
    )
    parser.add_argument(
        "--format",
        choices=["onnx", "aoti"],
        default="onnx",
        help="ONNX, or a package compiled by AOTInductor (needs a C++ compiler) for frames of the "
        "source's size, which C++ can run (default: onnx)",
    )
    parser.add_argument(
        "--form",
        choices=["grid_sample", "gather"],
        help="standard operations that the attention consists of (default: in ONNX, the faster "
        "ones in ONNX Runtime; in a package, the operator itself, which needs stdeform where it "
        "runs)",
    )
    return parser


if __name__ == "__main__":
    main()
