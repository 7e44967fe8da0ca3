"""Thresholds with a bound on false rejects, and ensembles with scales fixed on normal images."""
