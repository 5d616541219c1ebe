"""stdeform: spatio-temporal deformable attention for PyTorch."""

__version__ = "0.1.0"

from .export import export_form
from .functional import st_deform_attn, st_deform_attn_from_offsets
from .modules import MSDeformAttn, STDeformAttn
from .shapes import level_starts, num_cells, reference_grid, valid_ratios

__all__ = [
    "MSDeformAttn",
    "STDeformAttn",
    "export_form",
    "level_starts",
    "num_cells",
    "reference_grid",
    "st_deform_attn",
    "st_deform_attn_from_offsets",
    "valid_ratios",
]
