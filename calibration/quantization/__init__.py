"""Reduced precision: FP16 and INT8 graphs, and the gate that lets them in."""
