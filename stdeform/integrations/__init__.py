"""Other projects' code on this library's operators; nothing in stdeform imports these modules."""

from ._replacing import UnsupportedVersionError

__all__ = ["UnsupportedVersionError"]
