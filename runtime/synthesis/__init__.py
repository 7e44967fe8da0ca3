"""Synthesis of defects, without torch: what it starts from, the drawing itself, its filter, and datasets of it."""

from flawscope.datasets.defects.anomalous_samples import Defective, list_defective
from flawscope.datasets.defects.box_sets import BoxRecord, BoxSettings, write_boxes
from flawscope.datasets.defects.captions import Captions, read_frames, read_phrases
from flawscope.datasets.defects.descriptions import DescriptionRecord, write_descriptions
from flawscope.datasets.defects.foreground import find_foreground
from flawscope.datasets.defects.mask_ranges import CategoryRanges, read_ranges
from flawscope.datasets.defects.mask_sets import MaskRecord, MaskSettings, write_masks
from flawscope.datasets.defects.random_boxes import BoxRange
from flawscope.datasets.defects.random_masks import Sides
from flawscope.datasets.defects.support_set import (
    AlikePicture,
    SupportPicture,
    SupportRecord,
    exclude_support,
    find_support,
    read_support,
    write_support,
)
from flawscope.runtime.synthesis.draw_options import DrawOptions, DrawOrder, GenerateSettings
from flawscope.runtime.synthesis.generated_set import (
    GeneratedPicture,
    GenerateRecord,
    read_generated,
    redraw,
)
from flawscope.runtime.synthesis.generation import Site, generate_pictures, read_sites
from flawscope.runtime.synthesis.memorization import SupportPatch
from flawscope.runtime.synthesis.mixed_datasets import ProvenanceLine, SynthDatasetRecord, write_synth_dataset
from flawscope.runtime.synthesis.paste import feather_mask, paste_drawn
from flawscope.runtime.synthesis.precise_masks import MaskOptions, PreciseMask, precise_mask
from flawscope.runtime.synthesis.quality import QualityLimits, RejectSummary, Verdict, judge_picture, summarise
from flawscope.runtime.synthesis.synthesizer import Drawn, Synthesizer
from flawscope.runtime.synthesis.texture import texture_contrast

__all__ = [
    "AlikePicture",
    "BoxRange",
    "BoxRecord",
    "BoxSettings",
    "Captions",
    "CategoryRanges",
    "Defective",
    "DescriptionRecord",
    "DrawOptions",
    "DrawOrder",
    "Drawn",
    "GenerateRecord",
    "GenerateSettings",
    "GeneratedPicture",
    "MaskOptions",
    "MaskRecord",
    "MaskSettings",
    "PreciseMask",
    "ProvenanceLine",
    "QualityLimits",
    "RejectSummary",
    "Sides",
    "Site",
    "SupportPatch",
    "SupportPicture",
    "SupportRecord",
    "SynthDatasetRecord",
    "Synthesizer",
    "Verdict",
    "exclude_support",
    "feather_mask",
    "find_foreground",
    "find_support",
    "generate_pictures",
    "judge_picture",
    "list_defective",
    "paste_drawn",
    "precise_mask",
    "read_frames",
    "read_generated",
    "read_phrases",
    "read_ranges",
    "read_sites",
    "read_support",
    "redraw",
    "summarise",
    "texture_contrast",
    "write_boxes",
    "write_descriptions",
    "write_masks",
    "write_support",
    "write_synth_dataset",
]
