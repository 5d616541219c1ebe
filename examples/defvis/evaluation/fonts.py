"""Finds a font that has the characters of a text: class names come in every script."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from PIL import ImageFont

# A code point that is no character: what a font draws for it, it draws for all that it lacks.
_NO_CHARACTER = "\uffff"


def class_texts(names: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Names to draw: a class whose name no font has goes by its number."""
    return [
        name if name.strip() and _find_font(name) is not None else f"class {number}"
        for name, number in zip(names, ids, strict=True)
    ]


def readable(text: str, size: int) -> tuple[str, Any]:
    """A text and a font that has all of its characters.

    Args:
        text: One line.
        size: Height in pixels.

    Returns:
        The text, and Pillow's own font or, where that lacks characters, one of Matplotlib or the
        system. If none has them all, the code points of those outside ASCII stand in the text.
    """
    path = _find_font(text)
    if path is None:
        text = "".join(c if " " <= c <= "~" else f"U+{ord(c):04X}" for c in text)
    return text, _load(path or "", size)


def _find_font(text: str) -> str | None:
    """The file of a font that can draw the text, "" for Pillow's own, None if there is none."""
    if not text.isprintable():
        return None
    missing = frozenset(character for character in text if not _is_own(character))
    return _font_with(missing) if missing else ""


@functools.lru_cache(maxsize=4096)
def _is_own(character: str) -> bool:
    own = _load("", 16)
    return character == " " or bytes(own.getmask(character)) != bytes(own.getmask(_NO_CHARACTER))


@functools.lru_cache(maxsize=4096)
def _font_with(characters: frozenset[str]) -> str | None:
    from matplotlib import font_manager, ft2font  # Half a second, which few texts need.

    def rank(entry: font_manager.FontEntry) -> tuple[object, ...]:
        return entry.name != "DejaVu Sans", entry.style != "normal", entry.weight != 400

    for entry in sorted(font_manager.fontManager.ttflist, key=rank):
        if "lastresort" in entry.name.replace(" ", "").lower():
            continue  # It has every character, as one and the same sign.
        try:
            font = ft2font.FT2Font(entry.fname)
        except (OSError, RuntimeError):  # The list may be older than the fonts.
            continue
        if font.scalable and all(font.get_char_index(ord(c)) for c in (*characters, "0")):
            return str(entry.fname)
    return None


@functools.lru_cache(maxsize=64)
def _load(path: str, size: int) -> Any:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
