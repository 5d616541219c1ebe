"""Scores video instance segmentation as YouTube-VIS does: AP, AP50, AP75, AR1, AR10, by size.

From the predictions of any program, in the form of the YouTube-VIS server:

    python examples/evaluate_defvis.py --data runs/digits-data/val --results results.json

or from a trained model, which predicts first:

    python examples/evaluate_defvis.py --data runs/digits-data/val --run runs/digits

or from a file of export_defvis.py, in ONNX Runtime: --onnx digits.onnx instead of --run.

The figures are those of the official ytvoseval; -1 means no ground truth of this kind.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defvis.data.ytvis import YouTubeVIS


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, predicts with --run, scores, prints."""
    args = _parser().parse_args(argv)
    # Only now: --help must answer at once.
    from defvis.data.errors import DataError
    from defvis.data.ytvis import find_files, load
    from defvis.evaluation.ap import evaluate
    from defvis.evaluation.id_switches import measure_id_switches
    from defvis.evaluation.results import ResultError, load_results
    from defvis.training.checkpoint import CheckpointError

    try:
        data = load(*find_files(args.data))
        results = load_results(args.results) if args.results else _predict(args, data)
        ap = evaluate(data, results)
        id_switches = measure_id_switches(data, results) if args.id_switches else None
    except (CheckpointError, DataError, FileNotFoundError, ResultError, ValueError) as error:
        sys.exit(f"evaluate_defvis: {error}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results))
    print(f"{len(data.videos)} videos, {len(results)} results")
    for name, figure in ap.figures.items():
        print(f"{name:6s} {figure:.4f}")
    if id_switches is not None:
        print(id_switches)
    if args.per_class:
        for name, figure in zip(data.category_names, ap.per_class, strict=True):
            print(f"AP of {name}: {figure:.4f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with instances.json (or annotations.json), the ground truth, and JPEGImages/; "
        "or, with --results, the annotation file alone",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--results", type=Path, help="results.json to score")
    source.add_argument("--run", type=Path, help="folder of a training run, or its checkpoint")
    source.add_argument("--onnx", type=Path, help="file of export_defvis.py")
    parser.add_argument("--out", type=Path, help="write the predictions here, as results.json")
    parser.add_argument(
        "--id-switches", action="store_true", help="print what identity switches cost"
    )
    parser.add_argument("--per-class", action="store_true", help="print the AP of every class")
    parser.add_argument(
        "--window",
        type=int,
        default=0,
        help="frames per clip; longer videos are cut into overlapping clips (default: as trained)",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="clips at once (default: 4)")
    parser.add_argument(
        "--device",
        default="",
        help="of --run: cpu, cuda, cuda:1, ... (default: cuda if there is one)",
    )
    return parser


def _predict(args: argparse.Namespace, data: YouTubeVIS) -> list[dict[str, Any]]:
    import torch

    from defvis.data.clips import FrameCache
    from defvis.evaluation.predict import predict_videos
    from defvis.evaluation.tracks import to_results
    from defvis.export.onnx_model import load_onnx
    from defvis.models.model import DefVIS
    from defvis.training.load_trained import load_trained

    trained = load_onnx(args.onnx) if args.onnx else load_trained(args.run)
    if trained.category_ids != data.category_ids:
        raise ValueError(
            f"{args.onnx or args.run} was trained on the category ids "
            f"{list(trained.category_ids)}, {args.data} has {list(data.category_ids)}"
        )
    if isinstance(trained.model, DefVIS):
        trained.model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    predicted = predict_videos(
        trained.model,
        data.videos,
        trained.config.data,
        FrameCache(0),
        batch_size=args.batch_size,
        window=args.window,
        progress=sys.stderr.isatty(),
    )
    return [
        result
        for video, tracks in zip(data.videos, predicted, strict=True)
        for result in to_results(tracks, video.id, data.category_ids)
    ]


if __name__ == "__main__":
    main()
