"""Fuzzing of what opens strangers' files: bundles and images. `tools/fuzz.py` is the command."""
