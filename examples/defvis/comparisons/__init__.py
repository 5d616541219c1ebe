"""Configs and kinds of attention, compared by how fast they learn."""
