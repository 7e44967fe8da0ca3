"""Defects drawn without a network, on arrays alone: plausible places, pasted support defects, and Perlin anomalies."""

from flawscope.datasets.drawing.pasting import Cutout, PasteOptions, cut_defects, paste_defect
from flawscope.datasets.drawing.perlin import PerlinOptions, perlin_anomaly
from flawscope.datasets.drawing.textures import augment_texture, make_texture, shuffle_texture

__all__ = [
    "Cutout",
    "PasteOptions",
    "PerlinOptions",
    "augment_texture",
    "cut_defects",
    "make_texture",
    "paste_defect",
    "perlin_anomaly",
    "shuffle_texture",
]
