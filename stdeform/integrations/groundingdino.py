"""Grounding DINO, the original code, on this library's operator.

    import stdeform.integrations.groundingdino as adapter; adapter.enable()

Read in groundingdino-py 0.4.0 and in the repository at 856dde2. The former attends in plain PyTorch
on every device. The latter does so on the CPU, and on CUDA needs its extension `groundingdino._C`,
which this library replaces where it is compiled and provides where it is not.
"""

from __future__ import annotations

from ._own_extension import OwnExtension

__all__ = ["disable", "enable"]

_switch = OwnExtension("groundingdino", "groundingdino.models.GroundingDINO.ms_deform_attn")


def enable() -> list[str]:
    """Puts the operator into the layers of all models; again, it does nothing.

    Where `groundingdino._C` cannot be imported, that name means this library's functions until
    `disable`, and in modules that have imported it meanwhile also afterwards.

    Returns:
        The names of what is replaced.

    Raises:
        ModuleNotFoundError: Grounding DINO, or something that it needs, is not installed.
        UnsupportedVersionError: The installed version lacks the function, or it takes other
            arguments. Nothing is replaced.
    """
    return _switch.enable()


def disable() -> None:
    """Undoes `enable`; again, it does nothing."""
    _switch.disable()
