"""Detectors: how each is fitted or trained, and the run it leaves."""
