"""Defects drawn without a network, on arrays alone: plausible places, pasted support defects, and Perlin anomalies."""
