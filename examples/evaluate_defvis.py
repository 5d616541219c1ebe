"""Scores video instance segmentation as YouTube-VIS does: AP, AP50, AP75, AR1, AR10, by size.

From the predictions of any program, in the form of the YouTube-VIS server:

    python examples/evaluate_defvis.py --data runs/digits-data/val --results results.json

or from a trained model, which predicts first:

    python examples/evaluate_defvis.py --data runs/digits-data/val --run runs/digits

or from a file of export_defvis.py, in ONNX Runtime: --onnx digits.onnx instead of --run.

With --out, a prediction that was interrupted goes on with --resume after the last finished video.

The figures are those of the official ytvoseval; -1 means no ground truth of this kind. --errors
counts what is wrong with the results, and --html writes it as a page with the worst videos first.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defvis.arguments import number, say, whole_number
from defvis.programs import one_line_errors, only_run_in, prepare_folder

if TYPE_CHECKING:
    import torch

    from defvis.data.dataset import YouTubeVIS
    from defvis.evaluation.ap import VideoAP
    from defvis.evaluation.comparison import Comparison
    from defvis.evaluation.journal import Journal
    from defvis.training.load_trained import TrainedModel

# Least score of the results whose errors are counted.
_THRESHOLD = 0.3


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, predicts with --run, scores, prints."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.device and not args.run:
        parser.error("--device needs --run: an exported file runs on the CPU")
    if args.out is not None and args.out.suffix != ".json":
        parser.error(f"--out must be a file .json, got {args.out}")
    if args.resume and (args.results or not args.out):
        parser.error("--resume needs --out, and --run or --onnx")
    if args.sampling and not args.run:
        parser.error("--sampling needs --run")
    if args.short_side and args.results:
        parser.error("--short-side needs --run or --onnx")
    if args.html is not None and args.html.suffix not in (".html", ".htm"):
        parser.error(f"--html must be a file .html, got {args.html}")
    if args.threshold is not None and not (args.errors or args.html):
        parser.error("--threshold needs --errors or --html")
    # Only now: --help must answer at once.
    from defvis.models.device import find_device
    from defvis.pretrained.tensor_file import CheckpointError

    with one_line_errors("evaluate_defvis", CheckpointError):
        try:
            device = find_device(args.device if args.run else "cpu")
        except ValueError as error:
            parser.error(str(error))
        _run(args, device)


def _run(args: argparse.Namespace, device: torch.device) -> None:
    from defvis.data.check import check_frames
    from defvis.data.ytvis import find_files, load
    from defvis.errors.page import check_page
    from defvis.evaluation.ap import average_precision
    from defvis.evaluation.comparison import compare
    from defvis.evaluation.id_switches import measure_id_switches
    from defvis.evaluation.results import load_results
    from defvis.evaluation.whole_file import write_results

    annotations, frames = find_files(args.data)
    if args.out is not None:
        _check_out(args.out, annotations)
    if args.html is not None:
        check_page(args.html)
    data = load(annotations, frames, progress=True)
    for note in data.notes:
        say(note)
    if args.results:
        if args.html is not None:
            check_frames(data.videos, progress=True)
        results = load_results(args.results)
        if args.out is not None:
            write_results(args.out, results)
    else:
        results = _predict(args, data, annotations, device)
    comparisons = compare(data, results)
    ap = average_precision(data, comparisons)
    print(f"{len(data.videos)} videos, {len(results)} results")
    for name, figure in ap.figures.items():
        print(f"{name:6s} {figure:.4f}")
    if args.id_switches:
        print(measure_id_switches(comparisons))
    if args.per_class:
        for name, figure in zip(data.category_names, ap.per_class, strict=True):
            say(f"AP of {name}: {figure:.4f}")
    if args.errors or args.html:
        _report_errors(args, data, comparisons, ap)


def _report_errors(
    args: argparse.Namespace, data: YouTubeVIS, comparisons: Sequence[Comparison], ap: VideoAP
) -> None:
    from defvis.errors.counts import count_errors
    from defvis.errors.page import write_page

    threshold = _THRESHOLD if args.threshold is None else args.threshold
    counts = count_errors(data, comparisons, threshold)
    if args.errors:
        for line in counts.lines(data.category_names):
            say(line)
    if args.html:
        source = args.results or args.run or args.onnx
        about = {"data": str(args.data), "results": str(source)}
        write_page(args.html, data, ap, counts, about)
        say(f"written: {args.html}")


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
    parser.add_argument(
        "--sampling",
        action="store_true",
        help="of --run: print how far, in which frames and on which objects each layer's sampling "
        "points lie, before and after training; not of attention 'dense' or 'frames'",
    )
    parser.add_argument("--per-class", action="store_true", help="print the AP of every class")
    parser.add_argument(
        "--errors",
        action="store_true",
        help="count confused, badly covered, doubled, missed, split, merged and swapped objects",
    )
    parser.add_argument(
        "--html", type=Path, help="write the errors as a page here, with the worst videos first"
    )
    parser.add_argument(
        "--threshold",
        type=number(0, 1),
        help=f"of --errors and --html: count results from this score on (default: {_THRESHOLD})",
    )
    parser.add_argument(
        "--window",
        type=whole_number(0),
        default=0,
        help="frames per clip; longer videos are cut into overlapping clips (default, or 0: as "
        "trained)",
    )
    parser.add_argument(
        "--short-side",
        type=whole_number(0),
        default=0,
        help="pixels of the short side of the frames that the model is shown (default, or 0: as "
        "trained)",
    )
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=4, help="clips at once (default: 4)"
    )
    parser.add_argument(
        "--device",
        default="",
        help="of --run: cpu, cuda, cuda:1, ... (default: cuda if there is one)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted prediction beside --out, if any, after its last video",
    )
    return parser


def _check_out(out: Path, annotations: Path) -> None:
    """Sees that the file can be written, before work is done for it."""
    if out.is_dir():
        raise IsADirectoryError(f"cannot write {out}: it is a folder")
    if out.resolve() == annotations.resolve():
        raise ValueError(f"cannot write {out}: it is the ground truth")
    prepare_folder(out.parent)


def _predict(
    args: argparse.Namespace, data: YouTubeVIS, annotations: Path, device: torch.device
) -> list[dict[str, Any]]:
    from defvis.data.categories import difference
    from defvis.data.check import check_frames
    from defvis.data.clips import FrameCache
    from defvis.evaluation.predict import check_clips, predict_videos
    from defvis.evaluation.sampling_statistics import measure_sampling, to_tables
    from defvis.evaluation.scale import scale_notes, with_short_side
    from defvis.evaluation.tracks import MAX_WHOLE_LENGTH, to_results
    from defvis.evaluation.whole_file import write_results
    from defvis.export.onnx_model import load_onnx
    from defvis.models.model import DefVIS
    from defvis.training.load_trained import load_trained

    trained: TrainedModel[Any] = load_onnx(args.onnx) if args.onnx else load_trained(args.run)
    differs = difference(
        trained.category_ids, trained.category_names, data.category_ids, data.category_names
    )
    if differs:
        raise ValueError(
            f"{args.onnx or args.run} was trained on other classes than {args.data} has: {differs}"
        )
    check_clips(trained.model, data.videos, args.window)
    seen = with_short_side(trained.config.data, args.short_side)
    for note in scale_notes(data.videos, trained.config.data, seen):
        say(note)
    check_frames(data.videos, progress=True)
    if isinstance(trained.model, DefVIS):
        trained.model.to(device)
        if args.sampling:
            figures = measure_sampling(
                trained.model, data.videos, seen, window=args.window, progress=True
            )
            print(to_tables(figures))
    with _journal(args, trained, annotations) as journal:
        done: int = journal.saved.get("videos", 0)
        if done:
            print(f"going on after video {done} of {len(data.videos)}")
        predicted = predict_videos(
            trained.model,
            data.videos,
            seen,
            FrameCache(0),
            batch_size=args.batch_size,
            window=args.window,
            progress=True,
            done=done,
        )
        for video, tracks in zip(data.videos[done:], predicted, strict=True):
            journal.append(to_results(tracks, video.id, data.category_ids))
            done += 1
            journal.save({"videos": done})
        results = [entry for _, entries in journal for entry in entries]
        if args.out is not None:
            write_results(args.out, results)
            if any("first_frame" in entry for entry in results):
                print(
                    f"results of videos of more than {MAX_WHOLE_LENGTH} frames have a first_frame, "
                    "which the YouTube-VIS server does not know"
                )
    return results


@contextlib.contextmanager
def _journal(
    args: argparse.Namespace, trained: TrainedModel[Any], annotations: Path
) -> Iterator[Journal]:
    """The results of each finished video; in a folder beside --out, which is deleted at the end."""
    from defvis.evaluation.journal import Journal, KeptJournal
    from defvis.training.fingerprint import of_content, of_model

    if args.out is None:
        yield Journal()
        return
    folder = args.out.with_name(f"{args.out.name}.unfinished")
    agreed = {
        "the model": of_content(args.onnx) if args.onnx else of_model(trained),
        "the annotations": of_content(annotations),
        "--window": args.window,
        "--short-side": args.short_side,
        "--batch-size": args.batch_size,
    }
    with only_run_in(folder), KeptJournal(folder, agreed, args.resume) as journal:
        yield journal
        journal.remove()


if __name__ == "__main__":
    main()
