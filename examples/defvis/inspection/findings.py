"""What a check of a dataset finds: lines by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# The most lines of one kind that are shown on a terminal.
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing that is odd or wrong.

    Attributes:
        kind: What it is, as the heading of all of its kind.
        text: Where, and details.
    """

    kind: str
    text: str


class Findings:
    """Findings by kind, in the order in which the kinds came first."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self._kinds: dict[str, list[str]] = {}
        self.add(findings)

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))

    @property
    def kinds(self) -> Mapping[str, list[str]]:
        """The texts of each kind."""
        return self._kinds

    def add(self, findings: Iterable[Finding]) -> None:
        """Adds some at the end."""
        for finding in findings:
            self._kinds.setdefault(finding.kind, []).append(finding.text)

    def lines(self, most: int = _SHOWN) -> list[str]:
        """Each kind with its number, and below it the first texts.

        Args:
            most: Texts of a kind; further ones are counted.
        """
        lines = []
        for kind, texts in self._kinds.items():
            lines.append(f"  {kind} ({len(texts)}):")
            lines += [f"    {text}" for text in texts[:most]]
            if len(texts) > most:
                lines.append(f"    and {len(texts) - most} more")
        return lines
