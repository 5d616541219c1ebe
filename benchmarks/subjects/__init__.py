"""What is timed: the operator, its baselines, blocks and whole models."""
