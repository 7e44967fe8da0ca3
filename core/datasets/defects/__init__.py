"""Sets that defect synthesis starts from: support, box, mask and description sets, with one strict reader each."""

from flawscope.datasets.defects.anomalous_samples import AnomalousSample, list_anomalous
from flawscope.datasets.defects.box_sets import (
    BoxLine,
    BoxRecord,
    BoxSettings,
    find_box_lines,
    read_box_lines,
    write_boxes,
)
from flawscope.datasets.defects.captions import Captions, read_frames, read_phrases
from flawscope.datasets.defects.descriptions import (
    Description,
    DescriptionRecord,
    read_descriptions,
    write_descriptions,
)
from flawscope.datasets.defects.drawn_set import DrawnImage, read_drawn, read_learned
from flawscope.datasets.defects.foreground import find_foreground
from flawscope.datasets.defects.mask_ranges import CategoryRanges, read_ranges
from flawscope.datasets.defects.mask_sets import MaskRecord, MaskSettings, write_masks
from flawscope.datasets.defects.random_boxes import BoxRange
from flawscope.datasets.defects.random_masks import Sides
from flawscope.datasets.defects.support_set import (
    SUPPORT_RECORD,
    NearDuplicate,
    SupportImage,
    SupportRecord,
    exclude_support,
    find_support,
    read_support,
    support_record,
    write_support,
)

__all__ = [
    "SUPPORT_RECORD",
    "AnomalousSample",
    "BoxLine",
    "BoxRange",
    "BoxRecord",
    "BoxSettings",
    "Captions",
    "CategoryRanges",
    "Description",
    "DescriptionRecord",
    "DrawnImage",
    "MaskRecord",
    "MaskSettings",
    "NearDuplicate",
    "Sides",
    "SupportImage",
    "SupportRecord",
    "exclude_support",
    "find_box_lines",
    "find_foreground",
    "find_support",
    "list_anomalous",
    "read_box_lines",
    "read_descriptions",
    "read_drawn",
    "read_frames",
    "read_learned",
    "read_phrases",
    "read_ranges",
    "read_support",
    "support_record",
    "write_boxes",
    "write_descriptions",
    "write_masks",
    "write_support",
]
