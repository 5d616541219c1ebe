"""Weights of other projects and of other runs."""
