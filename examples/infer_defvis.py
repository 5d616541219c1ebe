"""Finds and tracks the objects of any video with a trained model.

    python examples/infer_defvis.py --run runs/digits --source frames/ --out runs/seen

The source is a folder of pictures or a video file (with PyAV: pip install av) of any length. Long
videos are cut into overlapping clips, and objects are linked across them. The program writes
results.json (in the format of the YouTube-VIS server), an animated overlay with masks, boxes,
identities, classes and scores, and a contact sheet. With --points it draws the sampling points of a
query, as in Figure 1 of the paper:

    ... --points decoder:2:5            object slot 2 in frame 5
    ... --points encoder:120:64:5       the cell of pixel (120, 64) in frame 5

With --onnx digits.onnx instead of --run, a file of export_defvis.py runs in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from defvis.config import DataConfig
    from defvis.data.ytvis import Frames
    from defvis.evaluation.tracks import SlotTrack
    from defvis.models.model import DefVIS

_KINDS = ("results", "webp", "sheet", "video")
# Small frames are enlarged to about this width; frames on the contact sheet; its columns.
_DRAW_WIDTH, _SHEET, _COLUMNS = 320, 24, 6
# Frames per second if neither the source nor the user gives a rate (YouTube-VIS annotates 6).
_RATE = 6.0


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, predicts, writes what --write and --points name."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.onnx and (args.points or args.precision != "fp32"):
        parser.error("--points and --precision need --run: an exported file only predicts, in fp32")
    if "video" in args.write and importlib.util.find_spec("av") is None:
        sys.exit("infer_defvis: --write video needs PyAV: pip install av")
    # Only now: --help must answer at once.
    import torch

    from defvis.data.clips import FrameCache
    from defvis.data.errors import DataError
    from defvis.data.sources import open_source
    from defvis.evaluation.predict import predict_videos
    from defvis.evaluation.tracks import to_results
    from defvis.export.onnx_model import load_onnx
    from defvis.models.model import DefVIS
    from defvis.training.checkpoint import CheckpointError
    from defvis.training.load_trained import load_trained

    try:
        trained = load_onnx(args.onnx) if args.onnx else load_trained(args.run)
        window = args.window or trained.config.model.num_frames
        source = open_source(args.source, args.every, keep=2 * window)
        if isinstance(trained.model, DefVIS):
            trained.model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        (tracks,) = predict_videos(
            trained.model,
            [source],
            trained.config.data,
            FrameCache(0),
            batch_size=1,
            window=window,
            progress=sys.stderr.isatty(),
            precision=args.precision,
        )
        args.out.mkdir(parents=True, exist_ok=True)
        if "results" in args.write:
            results = to_results(tracks, args.video_id, trained.category_ids)
            (args.out / "results.json").write_text(json.dumps(results))
        _draw(args, source, tracks, trained.category_names)
        if args.points and isinstance(trained.model, DefVIS):
            _draw_points(args, source, trained.model, trained.config.data, window)
    except (CheckpointError, DataError, FileNotFoundError, ValueError) as error:
        sys.exit(f"infer_defvis: {error}")
    seen = [track for track in tracks if track.score >= args.threshold]
    print(f"{source.length} frames, {len(seen)} objects with a score from {args.threshold}:")
    for track in seen:
        frames = [index for index, mask in enumerate(track.masks) if mask is not None]
        name = trained.category_names[track.label]
        print(
            f"  #{track.identity}: {name} {track.score:.2f}, in {len(frames)} frames "
            f"from {frames[0]} to {frames[-1]}"
        )
    print(f"written to {args.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", type=Path, help="folder of a training run, or its checkpoint")
    model.add_argument("--onnx", type=Path, help="file of export_defvis.py")
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of pictures, or a video file"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--write",
        nargs="*",
        choices=_KINDS,
        default=["results", "webp", "sheet"],
        help="what to write (default: results webp sheet; video needs PyAV)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="lowest score to draw (default: 0.3)"
    )
    parser.add_argument("--every", type=int, default=1, help="take each n-th frame (default: 1)")
    parser.add_argument(
        "--window", type=int, default=0, help="frames per clip (default: as trained)"
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="frames per second to show (default: the source's)"
    )
    parser.add_argument("--video-id", type=int, default=1, help="in results.json (default: 1)")
    parser.add_argument("--points", metavar="QUERY", help="draw a query's sampling points")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="of the model's arithmetic (default: fp32)",
    )
    parser.add_argument(
        "--device",
        default="",
        help="of --run: cpu, cuda, cuda:1, ... (default: cuda if there is one)",
    )
    return parser


def _draw(
    args: argparse.Namespace, source: Frames, tracks: Sequence[SlotTrack], names: Sequence[str]
) -> None:
    from defvis.evaluation.overlays import (
        Overlay,
        draw_overlay,
        save_animation,
        save_sheet,
        save_video,
    )

    overlays = [
        Overlay(track.identity, f"{names[track.label]} {track.score:.2f}", track.masks)
        for track in tracks
        if track.score >= args.threshold
    ]
    scale = max(1, _DRAW_WIDTH // source.width)

    def images(frames: Sequence[int]) -> Iterator[Image.Image]:
        """Yields one at a time: a long video may not fit into memory."""
        return (draw_overlay(source.frame(index), overlays, index, scale) for index in frames)

    everything = range(source.length)
    rate = args.rate or getattr(source, "rate", 0.0) or _RATE
    if "webp" in args.write:
        save_animation(images(everything), args.out / "overlay.webp", 1000 / rate)
    if "video" in args.write:
        save_video(images(everything), args.out / "overlay.mp4", rate)
    if "sheet" in args.write:
        count = min(_SHEET, source.length)
        chosen = [index * source.length // count for index in range(count)]
        save_sheet(list(images(chosen)), args.out / "sheet.png", _COLUMNS)


def _draw_points(
    args: argparse.Namespace, source: Frames, model: DefVIS, config: DataConfig, window: int
) -> None:
    import numpy as np

    from defvis.data.resize_crop import network_size, scale_frames
    from defvis.evaluation.sampling_figure import decoder_points, draw_points, encoder_points

    kind, *words = args.points.split(":")
    if not all(word.isdigit() for word in words) or (kind, len(words)) not in (
        ("decoder", 2),
        ("encoder", 3),
    ):
        raise ValueError(
            "points must be decoder:SLOT:FRAME or encoder:X:Y:FRAME in whole numbers, "
            f"got {args.points!r}"
        )
    numbers = [int(word) for word in words]
    frame = numbers[-1]
    if frame >= source.length:
        raise ValueError(f"points must be of a frame below {source.length}, got {frame}")
    # The clip that has the frame in its middle, as far as the video reaches.
    start = max(0, min(frame - window // 2, source.length - window))
    pixels = np.stack(
        [source.frame(index) for index in range(start, min(start + window, source.length))]
    )
    size = network_size(source.height, source.width, config)
    scaled = scale_frames(pixels, size)
    if kind == "decoder":
        points = decoder_points(model, scaled, numbers[0], frame - start)
    else:
        x, y = numbers[0] / source.width * size[1], numbers[1] / source.height * size[0]
        points = encoder_points(model, scaled, x, y, frame - start)
    draw_points(pixels, points, args.out / "points.png", _COLUMNS)


if __name__ == "__main__":
    main()
