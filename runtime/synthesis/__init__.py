"""Synthesis of defects, without torch: the drawing itself, its filter, and datasets of it."""

from flawscope.runtime.synthesis.draw_options import DrawOptions, DrawOrder, GenerateSettings
from flawscope.runtime.synthesis.generated_set import (
    GeneratedImage,
    GenerateRecord,
    read_generated,
    redraw,
)
from flawscope.runtime.synthesis.generation import generate_images
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.memorization import SupportPatch
from flawscope.runtime.synthesis.mixed_datasets import ProvenanceLine, SynthDatasetRecord, write_synth_dataset
from flawscope.runtime.synthesis.paste import feather_mask, paste_drawn
from flawscope.runtime.synthesis.precise_masks import MaskOptions, PreciseMask, precise_mask
from flawscope.runtime.synthesis.quality import QualityLimits, RejectSummary, Verdict, judge_image, summarise
from flawscope.runtime.synthesis.sites import Site, read_sites
from flawscope.runtime.synthesis.synthesizer import Drawn, Synthesizer
from flawscope.runtime.synthesis.texture import texture_contrast

__all__ = [
    "DrawOptions",
    "DrawOrder",
    "Drawn",
    "GenerateRecord",
    "GenerateSettings",
    "GeneratedImage",
    "MaskOptions",
    "MaskedLpips",
    "PreciseMask",
    "ProvenanceLine",
    "QualityLimits",
    "RejectSummary",
    "Site",
    "SupportPatch",
    "SynthDatasetRecord",
    "Synthesizer",
    "Verdict",
    "feather_mask",
    "generate_images",
    "judge_image",
    "paste_drawn",
    "precise_mask",
    "read_generated",
    "read_sites",
    "redraw",
    "summarise",
    "texture_contrast",
    "write_synth_dataset",
]
