"""Datasets that are made: the moving digits, and nuclei of a time-lapse; both as YouTube-VIS."""
