"""Training: losses, matching, optimiser, checkpoints, the loop."""
