"""Scorers: they compute anomaly maps and scores of prepared images, one kind of method per file."""
