"""stdeform: spatio-temporal deformable attention for PyTorch."""

from .functional import st_deform_attn, st_deform_attn_from_offsets

__all__ = ["st_deform_attn", "st_deform_attn_from_offsets"]
