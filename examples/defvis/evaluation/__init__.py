"""From outputs to tracks, average precision and pictures."""
