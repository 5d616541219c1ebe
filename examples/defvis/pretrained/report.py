"""What of a file of weights a model has taken, in words: one line for each part of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Parts of the model, in the order in which frames pass them, and how names in them begin.
_PARTS = {
    "backbone": ("backbone.",),
    "projection": ("project.", "project_coarser.", "level_position"),
    "encoder": ("encoder.",),
    "queries": ("decoder.queries.", "identity."),
    "decoder": ("decoder.layers.", "decoder.norm."),
    "class heads": ("decoder.class_heads.",),
    "box heads": ("decoder.box_heads.",),
    "mask head": ("mask_features.", "mask_head."),
    "class maps": ("backbone_classes.", "memory_classes."),
}
# The most groups of unused entries that are named.
_MOST_GROUPS = 8


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a file of weights.

    Attributes:
        source: Result of `recognise`.
        title: The file, and what it is.
        loaded: Entries of the model that now hold the file's values.
        skipped: Entries of the file that were not used, and why.
        missing: Entries of the model that keep the values they had.
        reasons: Why, for those of `missing` to which the file has an entry. What is before the
            first bracket is the same for all entries of a kind.
        inflated: Those of `loaded` that hold sampling points made of points in the frame.
        unknown: Those of `skipped` to which the model has no entry.
        kept: What the model's backbone was before, "" for random values.
    """

    source: str
    title: str
    loaded: tuple[str, ...]
    skipped: dict[str, str]
    missing: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)
    inflated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    kept: str = ""

    def __str__(self) -> str:
        loaded, missing = _by_part(self.loaded), _by_part(self.missing)
        lines, random = [], []
        for part in (part for part in _PARTS if part in loaded or part in missing):
            kept = missing.get(part, [])
            if part in loaded or any(name in self.reasons for name in kept):
                lines.append(f"  {part}: {self._of_part(loaded.get(part, []), kept)}")
            elif part == "backbone" and self.kept:
                lines.append(f"  {part}: keeps the weights of {self.kept}, the file has none")
            else:
                random.append(part)
        if random:
            lines.append(f"  from random values, as the file has none: {', '.join(random)}")
        unused = Counter(_group(name) for name in self.unknown if not is_counter(name))
        if unused:
            named = [f"{group} ({count})" for group, count in unused.most_common(_MOST_GROUPS)]
            more = f" and {len(unused) - len(named)} more" * (len(unused) > len(named))
            lines.append(f"  not used, the model has no such part: {', '.join(named)}{more}")
        return "\n".join((f"weights {self.title}:", *lines))

    def _of_part(self, loaded: Sequence[str], missing: Sequence[str]) -> str:
        """What has become of the entries of a part of the model."""
        inflated = len(set(loaded) & set(self.inflated))
        told = [f"{len(loaded)} of {len(loaded) + len(missing)} entries"]
        if inflated:
            told[0] += f", {inflated} of them from sampling points in the frame to such in the clip"
        kinds: dict[str, list[str]] = {}
        for name in missing:
            reason = self.reasons.get(name, "not in the file")
            kinds.setdefault(reason.partition(" (")[0], []).append(reason)
        told += [f"{len(alike)} {alike[0]}" for alike in kinds.values()]
        return "; ".join(told)


def shape_reason(name: str, have: Sequence[int], want: Sequence[int]) -> str:
    """Why an entry of another shape is not taken.

    Args:
        name: Of the model's entry.
        have: Its shape in the file.
        want: Its shape in the model.
    """
    if _part(name) in ("class heads", "class maps") and have[1:] == want[1:]:
        return f"with rows for {have[0]} classes in the file, {want[0]} here"
    return f"of another shape ({name} is {list(have)} in the file, {list(want)} here)"


def _by_part(names: Sequence[str]) -> Mapping[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        if not is_counter(name):
            parts.setdefault(_part(name), []).append(name)
    return parts


def _part(name: str) -> str:
    return next(part for part, starts in _PARTS.items() if name.startswith(starts))


def is_counter(name: str) -> bool:
    """Batches that a norm has seen, which are no weights."""
    return name.endswith("num_batches_tracked")


def _group(name: str) -> str:
    """The part of a foreign model that an entry belongs to."""
    words = name.removeprefix("transformer.").removeprefix("backbone.0.body.").split(".")
    deep = words[0] in ("encoder", "decoder", "backbone", "model") and len(words) > 2
    return ".".join(words[:2] if deep else words[:1])
