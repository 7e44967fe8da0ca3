"""Distance kernels behind one interface: patch distance, Mahalanobis distance and greedy k-centre selection."""

from flawscope.cpp_ext.reference import kcenter_greedy, mahalanobis, nearest

IMPLEMENTATION = "reference (NumPy)"
"""Which implementation the names of this package are; `flawscope doctor` shows it."""

__all__ = ["IMPLEMENTATION", "kcenter_greedy", "mahalanobis", "nearest"]
