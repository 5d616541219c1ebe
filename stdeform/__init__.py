"""stdeform: spatio-temporal deformable attention for PyTorch."""

__version__ = "0.1.0"

from .functional import st_deform_attn, st_deform_attn_from_offsets

__all__ = ["st_deform_attn", "st_deform_attn_from_offsets"]
