"""Finds and tracks the objects of any video with a trained model.

    python examples/infer_defvis.py --run runs/digits --source frames/ --out runs/seen

The source is a folder of pictures or a video file (with PyAV: pip install av) of any length. Long
videos are cut into overlapping clips, and objects are linked across them. The program writes
results.json (in the format of the YouTube-VIS server; of more than 300 frames, entries have a
`first_frame`), an animated overlay with masks, boxes, identities, classes and scores, and a contact
sheet. With --points it draws the sampling points of a query, as in Figure 1 of the paper:

    ... --points decoder:2:5            object slot 2 in frame 5
    ... --points encoder:120:64:5       the cell of pixel (120, 64) in frame 5

Frames are shown to the model at the scale of its training, and results are in pixels of the source;
--short-side shows them at another scale.

With --onnx digits.onnx instead of --run, a file of export_defvis.py runs in ONNX Runtime.

A long video that was interrupted goes on with --resume after the last finished clip.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defvis.arguments import number, query, say, whole_number
from defvis.programs import one_line_errors, only_run_in, prepare_folder

if TYPE_CHECKING:
    from defvis.config import DataConfig
    from defvis.data.dataset import Frames
    from defvis.evaluation.journal import KeptJournal
    from defvis.evaluation.tracks import SlotTrack
    from defvis.models.model import DefVIS
    from defvis.training.load_trained import TrainedModel

# What --write names, and the files.
_FILES = {"results": "results.json", "webp": "overlay.webp", "sheet": "sheet.png",
          "video": "overlay.mp4"}  # fmt: skip
# Small frames are enlarged to about this width; frames on the contact sheet; its columns; the most
# frames of the animation, which is in memory until it is complete.
_DRAW_WIDTH, _SHEET, _COLUMNS, _ANIMATED = 320, 24, 6, 500
# Frames per second if neither the source nor the user gives a rate (YouTube-VIS annotates 6), and
# those that can be written.
_RATE, _RATES = 6.0, (0.001, 1000.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, predicts, writes what --write and --points name."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.onnx and (args.points or args.precision != "fp32" or args.device):
        parser.error(
            "--points, --precision and --device need --run: an exported file only predicts, in "
            "fp32 on the CPU"
        )
    if "video" in args.write and importlib.util.find_spec("av") is None:
        sys.exit("infer_defvis: --write video needs PyAV: pip install av")
    # Only now: --help must answer at once.
    from defvis.pretrained.tensor_file import CheckpointError

    if args.out.resolve() == args.source.resolve():
        parser.error(f"--out must be another folder than --source, got {args.out}")
    with one_line_errors("infer_defvis", CheckpointError), only_run_in(args.out):
        prepare_folder(args.out, [*(_FILES[kind] for kind in args.write), "points.png"])
        _run(parser, args)


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from defvis.data.clips import FrameCache
    from defvis.data.sources import open_source
    from defvis.evaluation.distinct import distinct
    from defvis.evaluation.fonts import class_texts
    from defvis.evaluation.predict import check_clips, predict_videos
    from defvis.evaluation.sampling_figure import check_query
    from defvis.evaluation.scale import scale_notes, with_short_side
    from defvis.evaluation.summary import summary
    from defvis.evaluation.tracks import track_results
    from defvis.evaluation.whole_file import write_results
    from defvis.export.onnx_model import load_onnx
    from defvis.models.device import find_device
    from defvis.models.model import DefVIS
    from defvis.training.load_trained import load_trained

    try:
        device = find_device("cpu" if args.onnx else args.device)
    except ValueError as error:
        parser.error(str(error))
    trained: TrainedModel[Any] = load_onnx(args.onnx) if args.onnx else load_trained(args.run)
    window = args.window or trained.config.model.num_frames
    source = open_source(args.source, args.every, keep=2 * window)
    data = with_short_side(trained.config.data, args.short_side)
    for note in (*source.notes, *scale_notes([source], trained.config.data, data)):
        say(note)
    check_clips(trained.model, [source], window)
    if isinstance(trained.model, DefVIS):
        trained.model.to(device)
        if args.points:
            try:
                check_query(trained.model, source, *args.points)
            except ValueError as error:
                parser.error(f"--points: {error}")
    with _open_journal(args, trained, source, window) as journal:
        if journal.saved:
            print(f"going on after clip {journal.saved['clips']}")
        (tracks,) = predict_videos(
            trained.model,
            [source],
            data,
            FrameCache(0),
            batch_size=1,
            window=window,
            progress=True,
            precision=args.precision,
            journal=journal,
        )
        if "results" in args.write:
            entries = (
                entry
                for track in tracks
                for entry in track_results(track, args.video_id, trained.category_ids)
            )
            write_results(args.out / _FILES["results"], entries)
        names = class_texts(trained.category_names, trained.category_ids)
        shown = distinct(tracks, args.threshold)
        _draw(args, source, shown, names)
        if args.points:
            _draw_points(args, source, trained.model, data, window)
        journal.remove()
    for line in summary(shown or tracks, trained.category_names, args.threshold, source.length):
        say(line)
    _say_where(args)


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
        choices=[*_FILES],
        default=["results", "webp", "sheet"],
        help="what to write (default: results webp sheet; video needs PyAV)",
    )
    parser.add_argument(
        "--threshold",
        type=number(0, 1),
        default=0.3,
        help="lowest score to draw (default: 0.3)",
    )
    parser.add_argument(
        "--every", type=whole_number(1), default=1, help="take each n-th frame (default: 1)"
    )
    parser.add_argument(
        "--window",
        type=whole_number(0),
        default=0,
        help="frames per clip (default, or 0: as trained)",
    )
    parser.add_argument(
        "--short-side",
        type=whole_number(0),
        default=0,
        help="pixels of the short side of the frames that the model is shown (default, or 0: the "
        "scale of its training)",
    )
    parser.add_argument(
        "--rate",
        type=number(*_RATES),
        help="frames per second to show (default: the source's)",
    )
    parser.add_argument(
        "--video-id", type=whole_number(0), default=1, help="in results.json (default: 1)"
    )
    parser.add_argument(
        "--points", type=query, metavar="QUERY", help="draw a query's sampling points"
    )
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
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run in --out, if any, after its last clip",
    )
    return parser


def _open_journal(
    args: argparse.Namespace, trained: TrainedModel[Any], source: Frames, window: int
) -> KeptJournal:
    from defvis.evaluation.journal import KeptJournal
    from defvis.training.fingerprint import of_content, of_listing, of_model

    agreed = {
        "the model": of_content(args.onnx) if args.onnx else of_model(trained),
        "the source": str(args.source.resolve()),
        "--every": args.every,
        "frames": source.length,
        "the source's files": of_listing(getattr(source, "files", (args.source,))),
        "--window": window,
        "--short-side": args.short_side,
        "--precision": args.precision,
    }
    return KeptJournal(args.out / "unfinished", agreed, args.resume, trained.model.device)


def _draw(
    args: argparse.Namespace, source: Frames, tracks: Sequence[SlotTrack], names: Sequence[str]
) -> None:
    from defvis.evaluation.overlays import (
        DrawnFrames,
        Overlay,
        every_nth,
        save_animation,
        save_sheet,
        save_video,
        sheet_scale,
    )

    overlays = [
        Overlay(track.identity, f"{names[track.label]} {track.score:.2f}", track.masks)
        for track in tracks
        if track.score >= args.threshold
    ]
    enlarged = max(1, _DRAW_WIDTH // source.width)

    def images(frames: Sequence[int], scale: float = enlarged) -> DrawnFrames:
        return DrawnFrames(source, overlays, scale, frames)

    rate = args.rate or getattr(source, "rate", 0.0)
    if not _RATES[0] <= rate <= _RATES[1]:  # Containers may say anything.
        rate = _RATE
    if "webp" in args.write:
        shown = every_nth(source.length, _ANIMATED)
        if shown.step > 1:
            print(
                f"overlay.webp shows one frame in {shown.step} of {source.length}; "
                "--write video shows all"
            )
        save_animation(images(shown), args.out / _FILES["webp"], 1000 / rate)
    if "video" in args.write:
        save_video(images(range(source.length)), args.out / _FILES["video"], rate)
    if "sheet" in args.write:
        count = min(_SHEET, source.length)
        chosen = [index * source.length // count for index in range(count)]
        scale = sheet_scale(source.width, min(_COLUMNS, count), _DRAW_WIDTH)
        save_sheet(images(chosen, scale), args.out / _FILES["sheet"], _COLUMNS)


def _draw_points(
    args: argparse.Namespace, source: Frames, model: DefVIS, config: DataConfig, window: int
) -> None:
    import numpy as np

    from defvis.data.resize_crop import network_size, scale_frames
    from defvis.evaluation.sampling_figure import decoder_points, draw_points, encoder_points

    kind, numbers = args.points
    frame = numbers[-1]
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


def _say_where(args: argparse.Namespace) -> None:
    """Names the files, the overlay last."""
    files = [file for kind, file in _FILES.items() if kind in args.write]
    files += ["points.png"] * bool(args.points)
    if files:
        say(f"written to {args.out}: {', '.join(files)}")
    overlays = [_FILES[kind] for kind in ("video", "webp") if kind in args.write]
    if overlays:
        say(f"to look at: {args.out / overlays[0]}")


if __name__ == "__main__":
    main()
