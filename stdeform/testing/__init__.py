"""Sample problems, the grid_sample baseline and the tolerances: for tests and benchmarks."""

from .baseline import composite, composite_from_offsets
from .problems import LAYOUTS, Layout, Problem, make_problem, with_layout
from .tolerances import TOLERANCES, Tolerance, assert_close, excess

__all__ = [
    "LAYOUTS",
    "TOLERANCES",
    "Layout",
    "Problem",
    "Tolerance",
    "assert_close",
    "composite",
    "composite_from_offsets",
    "excess",
    "make_problem",
    "with_layout",
]
