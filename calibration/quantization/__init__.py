"""Reduced precision: FP16 and INT8 graphs, and the acceptance gate that they and BF16 must pass."""
