"""Reduced precision: FP16 and INT8 graphs, and the acceptance gate that they must pass."""
