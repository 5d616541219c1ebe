"""detrex on this library's operator; read at e244e6c.

    import stdeform.integrations.detrex as adapter; adapter.enable()

Where detrex is not compiled, do so before it is imported: else it has no layers.

detrex attends in plain PyTorch on the CPU, and on CUDA needs its extension `detrex._C`, which this
library replaces where it is compiled and provides where it is not.
"""

from __future__ import annotations

from ._own_extension import OwnExtension

__all__ = ["disable", "enable"]

_switch = OwnExtension("detrex", "detrex.layers.multi_scale_deform_attn")


def enable() -> list[str]:
    """Puts the operator into the layers of all models; again, it does nothing.

    Where `detrex._C` cannot be imported, that name means this library's functions until
    `disable`, and in modules that have imported it meanwhile also afterwards.

    Returns:
        The names of what is replaced.

    Raises:
        ModuleNotFoundError: detrex, or something that it needs, is not installed.
        UnsupportedVersionError: The installed version lacks the function, or it takes other
            arguments. Nothing is replaced.
        RuntimeError: detrex has been imported before, and without its extension.
    """
    return _switch.enable()


def disable() -> None:
    """Undoes `enable`; again, it does nothing."""
    _switch.disable()
