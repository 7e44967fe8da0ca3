"""Bundles and thresholds of a line that runs: the store, the swap between two parts, and the way back."""
