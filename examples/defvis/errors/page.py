"""The errors of results as one HTML file: figures, confusions, the worst videos first."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from defvis.data.dataset import YouTubeVIS
from defvis.errors.counts import ErrorCounts, VideoErrors
from defvis.errors.kinds import ERRORS
from defvis.errors.words import describe, result_numbers
from defvis.evaluation.ap import VideoAP
from defvis.evaluation.fonts import class_texts
from defvis.evaluation.overlays import DrawnFrames, Overlay, every_nth, save_strip, sheet_scale
from defvis.evaluation.whole_file import whole_file
from defvis.programs import prepare_folder

# Videos that are shown, frames of each, the width to which small frames are enlarged, sentences.
_VIDEOS, _FRAMES, _WIDTH, _SENTENCES = 20, 8, 320, 25
# Classes in the table of confusions.
_CLASSES = 30
_MARK = '<meta name="generator" content="evaluate_defvis.py">'
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border: 1px solid #8886; text-align: right; font-weight: normal; }
th[scope=row] { text-align: left; }
thead th { font-weight: 600; vertical-align: bottom; }
.bar { display: inline-block; height: .7em; background: #d33a; vertical-align: baseline; }
img { display: block; height: auto; max-width: max(100%, 60rem); }
p, li { overflow-wrap: anywhere; }
"""
_EXPLAINED = {
    "class": "at the right place, of the wrong class",
    "localisation": "of the right class, with an IoU of 0.1 to 0.5",
    "both": "of the wrong class, with an IoU of 0.1 to 0.5",
    "duplicate": "finds an object again",
    "background": "where no object is",
    "missed": "an object that no result is about",
    "split": "objects that several results share",
    "merged": "results that cover several objects at once",
    "swapped": "pairs of objects that two results exchange",
}


def check_page(path: Path) -> None:
    """Sees that the page can be written, before work is done for it.

    Raises:
        OSError: If it cannot; the message names the file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(1000)
        if _MARK.encode() not in start:
            raise FileExistsError(
                f"cannot write {path}: it is another file than a page of evaluate_defvis.py"
            )
    prepare_folder(path.parent)


def write_page(
    path: Path, data: YouTubeVIS, ap: VideoAP, counts: ErrorCounts, about: Mapping[str, str]
) -> None:
    """Writes the page, with its pictures inside; one video is in memory at a time.

    Args:
        path: File to write, whole or not at all.
        data: Ground truth, with frames.
        ap: The figures.
        counts: The errors.
        about: What was evaluated, by what it is.

    Raises:
        OSError: If the file cannot be written; the message names it.
        DataError: If a frame cannot be read.
    """
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for part in _page(data, ap, counts, about):
            file.write(part + "\n")


def _page(
    data: YouTubeVIS, ap: VideoAP, counts: ErrorCounts, about: Mapping[str, str]
) -> Iterator[str]:
    names = data.category_names
    yield f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_MARK}'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Errors in {len(data.videos)} videos</title>\n<style>{_STYLE}</style>\n</head>"
    yield f"<body>\n<h1>Errors in {len(data.videos)} videos</h1>"
    said = [f"{escape(what)}: {escape(value)}" for what, value in about.items()]
    yield f"<p>{'<br>'.join(said)}</p>"
    figures = {name: f"{figure:.3f}" for name, figure in ap.figures.items() if figure >= 0}
    yield "<h2>Figures</h2>"
    yield _table(["", *figures], [["all videos", *figures.values()]])
    yield from _errors(counts)
    yield from _confusion(counts, names, ap)
    worst = counts.worst_first[:_VIDEOS]
    yield f"<h2>The {len(worst)} worst of {len(data.videos)} videos</h2>"
    yield (
        "<p>By video panoptic quality: the sum of the IoU of the correct results, over the mean of "
        "the number of results and the number of objects. Frames, objects and results are counted "
        "from 0. A result has the number and colour of the object that it finds, or would find if "
        "it had no error; other results have higher numbers.</p>"
    )
    drawn = class_texts(names, data.category_ids)
    with tempfile.TemporaryDirectory() as folder:
        for video in worst:
            yield from _video(video, names, drawn, Path(folder))
    yield "</body>\n</html>"


def _errors(counts: ErrorCounts) -> Iterator[str]:
    ignored = counts.results.get("ignored", 0)
    total = sum(counts.results.values()) - ignored
    yield "<h2>Errors</h2>"
    yield (
        f"<p>Results with a score from {counts.threshold:g}: {total}"
        + f", and {ignored} on crowds, which do not count" * bool(ignored)
        + ". dAP is how much AP would rise if no result of any score had an error of this kind "
        "(TIDE, over whole videos).</p>"
    )
    most = max((cost.ap50 for cost in counts.costs.values()), default=0) or 1
    right = [str(counts.results["correct"]), str(counts.objects["found"])]
    rows = [["correct", *right, "", "", "with an IoU of 0.5 or more"]]
    for kind in ERRORS:
        cost = counts.costs[kind]
        bar = f'<span class="bar" style="width:{max(0, cost.ap50) / most * 6:.2f}rem"></span>'
        numbers = [str(counted.get(kind, "")) for counted in (counts.results, counts.objects)]
        rows.append(
            [kind, *numbers, f"{bar} {cost.ap50:+.3f}", f"{cost.ap:+.3f}", _EXPLAINED[kind]]
        )
    for kind, number in counts.identities.items():
        at = (number, "") if kind == "merged" else ("", number)
        rows.append([kind, *map(str, at), "", "", _EXPLAINED[kind]])
    yield _table(["", "results", "objects", "dAP50", "dAP", "what it is"], rows)


def _confusion(counts: ErrorCounts, names: Sequence[str], ap: VideoAP) -> Iterator[str]:
    table = counts.confusion
    wrong = table.sum(0) + table.sum(1) - 2 * table.diagonal()
    by_errors = np.argsort(-wrong[:-1], kind="stable")[:_CLASSES]
    classes = sorted(by_errors.tolist())
    yield "<h2>Confusions</h2>"
    yield (
        "<p>A row for each class of the objects, a column for each class of the results that lie "
        "on them with an IoU of 0.5 or more. <i>Not found</i>: objects without such a result; "
        "<i>nothing there</i>: results without such an object. Duplicates are left out.</p>"
    )
    if len(classes) < len(names):
        yield f"<p>Shown are the {len(classes)} of {len(names)} classes with the most errors.</p>"
    shown = [escape(names[label]) for label in classes]
    places = [*classes, len(names)]
    rows = []
    for row, name in zip(places, [*shown, "<i>nothing there</i>"], strict=True):
        most = max(1, int(table[row].sum()))
        cells = [_shade(int(table[row, column]), most, row == column) for column in places]
        if row == len(names):
            rows.append([name, *cells[:-1], "", ""])
        else:
            figure = ap.per_class[row]
            rows.append([name, *cells, f"{figure:.3f}" if figure >= 0 else ""])
    yield _table(["object \\ result", *shown, "<i>not found</i>", "AP"], rows)


def _shade(number: int, most: int, right: bool) -> str:
    """A number whose cell is the stronger coloured, the larger it is."""
    colour = "40 160 80" if right else "220 60 60"
    return f'<td style="background:rgb({colour} / {0.6 * number / most:.2f})">{number or ""}</td>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML texts; the first of each row is its head."""

    def cell(content: str) -> str:
        return content if content.startswith("<td") else f"<td>{content}</td>"

    heads = "".join(f'<th scope="col">{content}</th>' for content in head)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(map(cell, others))}</tr>'
        for first, *others in rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _video(
    errors: VideoErrors, names: Sequence[str], drawn: Sequence[str], folder: Path
) -> Iterator[str]:
    video = errors.comparison.video
    number = f"{errors.number} error{'s' * (errors.number != 1)}"
    yield f"<h3>Video {video.id}: quality {errors.quality:.2f}, {number}</h3>"
    yield f"<p>{escape(video.files[0].parent.name)}, {video.length} frames</p>"
    sentences = list(describe(errors, names))
    yield "<ul>"
    for sentence in sentences[:_SENTENCES]:
        yield f"<li>{escape(sentence)}</li>"
    if len(sentences) > _SENTENCES:
        yield f"<li>and {len(sentences) - _SENTENCES} more</li>"
    yield "</ul>"
    strip = folder / "strip.webp"
    _draw(errors, drawn, strip)
    picture = base64.b64encode(strip.read_bytes()).decode("ascii")
    text = f"Video {video.id}: frames, objects and results"
    yield f'<div class="scroll"><img alt="{text}" src="data:image/webp;base64,{picture}"></div>'


def _draw(errors: VideoErrors, names: Sequence[str], path: Path) -> None:
    comparison = errors.comparison
    video = comparison.video
    truth = [
        Overlay(number, names[track.label] + " (crowd)" * track.is_crowd, track.masks)
        for number, track in enumerate(video.tracks)
    ]
    numbers = result_numbers(errors)
    texts: dict[int, list[int]] = {}
    for index in sorted(numbers, key=lambda index: numbers[index]):
        texts.setdefault(int(comparison.tracks[index]), []).append(index)
    results = []
    for track, indices in texts.items():
        # Results with the same masks are drawn as one.
        said = [f"{names[comparison.labels[i]]} {comparison.scores[i]:.2f}" for i in indices]
        more = [f"#{numbers[i]}: {text}" for i, text in zip(indices, said, strict=True)][1:]
        text = ", ".join([said[0], *more])
        results.append(Overlay(numbers[indices[0]], text, comparison.masks[track]))
    frames = every_nth(video.length, _FRAMES)
    scale = sheet_scale(video.width, len(frames), _WIDTH)
    which = f" {', '.join(map(str, frames))} of {video.length}" if frames.step > 1 else ""
    rows = [(f"frames{which}", []), ("objects", truth), ("results", results)]
    save_strip(
        [(title, DrawnFrames(video, overlays, scale, frames)) for title, overlays in rows], path
    )
