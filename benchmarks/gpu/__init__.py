"""`gpu-check`: everything that needs a GPU, in four commands."""
