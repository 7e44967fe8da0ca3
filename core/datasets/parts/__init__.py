"""Rendered demo parts with pixel-exact defect masks.

They replace real datasets, which may not be redistributed: in the demo, in tests, and for trying a detector offline.
"""

from __future__ import annotations

from flawscope.datasets.parts.demo_dataset import PartsRecord, write_dataset
from flawscope.datasets.parts.part_renderer import DEFECTS, GENERATOR_VERSION, KINDS, Pair, render, render_pair

__all__ = ["DEFECTS", "GENERATOR_VERSION", "KINDS", "Pair", "PartsRecord", "render", "render_pair", "write_dataset"]
