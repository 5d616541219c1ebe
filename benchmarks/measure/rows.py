"""A row of results, and the modes that a call is timed in."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]  # one figure, where it was measured, and how to repeat it

MODES = ("forward", "forward+backward")  # of a call
ALL_MODES = ("forward", "backward", "forward+backward")
