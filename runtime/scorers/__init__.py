"""Scorers: compute anomaly maps and scores of prepared images; one kind per file."""
