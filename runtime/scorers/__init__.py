"""Scorers: what makes anomaly maps and scores of prepared images, one kind a file."""
