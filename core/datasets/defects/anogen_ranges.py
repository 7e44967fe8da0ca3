"""Mask ranges that AnoGen published for MVTec AD and VisA.

A row is: defect types, least and largest width, least and largest height, whether masks are rotated. Two departures:
the flag is a boolean, where the published scripts take the text "False" for true and so rotate every mask, as
`--rotate all` does (the published masks themselves follow the flag); and the screw, without ranges of its own there,
has those of their foreground masks.
"""

from __future__ import annotations

from flawscope.datasets.defects.mask_ranges import CategoryRanges, Within
from flawscope.datasets.defects.random_masks import Sides

# The first text may name several defect types, which share the ranges.
_Row = tuple[str, float, float, float, float, bool]

_MVTEC: dict[str, tuple[_Row, ...]] = {
    "bottle": (
        ("broken_large", 0.2, 0.25, 0.25, 0.8, True),
        ("broken_small", 0.15, 0.25, 0.15, 0.25, False),
        ("contamination", 0.2, 0.4, 0.2, 0.4, True),
    ),
    "cable": (
        ("bent_wire", 0.1, 0.25, 0.1, 0.25, False),
        ("cable_swap", 0.3, 0.4, 0.3, 0.4, False),
        ("combined cut_inner_insulation missing_wire poke_insulation", 0.1, 0.2, 0.1, 0.2, False),
        ("cut_outer_insulation", 0.1, 0.2, 0.2, 0.4, True),
        ("missing_cable", 0.4, 0.4, 0.4, 0.4, False),
    ),
    "capsule": (
        ("crack", 0.1, 0.2, 0.1, 0.3, True),
        ("faulty_imprint", 0.15, 0.25, 0.15, 0.25, False),
        ("poke", 0.05, 0.15, 0.05, 0.15, False),
        ("scratch", 0.05, 0.15, 0.15, 0.25, True),
        ("squeeze", 0.25, 0.4, 0.3, 0.4, True),
    ),
    "carpet": (
        ("color", 0.1, 0.25, 0.1, 0.25, True),
        ("cut", 0.05, 0.15, 0.05, 0.15, True),
        ("hole", 0.05, 0.15, 0.05, 0.15, False),
        ("metal_contamination thread", 0.05, 0.2, 0.05, 0.2, True),
    ),
    "grid": (
        ("bent", 0.05, 0.15, 0.05, 0.15, False),
        ("broken glue metal_contamination", 0.1, 0.2, 0.1, 0.2, False),
        ("thread", 0.05, 0.1, 0.1, 0.4, True),
    ),
    "hazelnut": (
        ("crack", 0.2, 0.35, 0.2, 0.35, False),
        ("cut", 0.05, 0.2, 0.2, 0.3, True),
        ("hole", 0.1, 0.15, 0.1, 0.15, False),
        ("print", 0.2, 0.4, 0.2, 0.4, True),
    ),
    "leather": (
        ("color cut fold", 0.05, 0.1, 0.1, 0.2, True),
        ("glue poke", 0.05, 0.15, 0.05, 0.15, True),
    ),
    "metal_nut": (
        ("bent", 0.1, 0.2, 0.1, 0.2, True),
        ("color", 0.05, 0.1, 0.1, 0.2, True),
        ("flip", 0.9, 0.9, 0.9, 0.9, False),
        ("scratch", 0.2, 0.4, 0.2, 0.4, True),
    ),
    "pill": (
        ("color combined contamination", 0.05, 0.15, 0.05, 0.15, True),
        ("crack scratch", 0.05, 0.1, 0.1, 0.2, True),
        ("faulty_imprint", 0.1, 0.4, 0.1, 0.4, False),
        ("pill_type", 0.8, 0.8, 0.5, 0.5, False),
    ),
    "tile": (
        ("crack", 0.05, 0.1, 0.2, 1.0, True),
        ("glue_strip gray_stroke rough", 0.1, 0.4, 0.1, 0.4, True),
        ("oil", 0.1, 0.4, 0.1, 0.4, False),
    ),
    "toothbrush": (("defective", 0.1, 0.15, 0.1, 0.15, False),),
    "transistor": (
        ("bent_lead", 0.2, 0.4, 0.15, 0.3, False),
        ("cut_lead", 0.3, 0.6, 0.15, 0.4, False),
        ("damaged_case", 0.25, 0.4, 0.25, 0.4, False),
        ("misplaced", 0.9, 0.9, 0.9, 0.9, False),
    ),
    "wood": (
        ("color combined liquid", 0.1, 0.3, 0.1, 0.3, True),
        ("hole", 0.05, 0.15, 0.05, 0.15, False),
        ("scratch", 0.1, 0.2, 0.2, 0.5, True),
    ),
    "zipper": (
        (
            "broken_teeth combined fabric_border fabric_interior rough split_teeth squeezed_teeth",
            *(0.05, 0.15, 0.1, 0.2),
            False,
        ),
    ),
    "screw": (
        (
            "manipulated_front scratch_head scratch_neck thread_side thread_top",
            *(0.05, 0.1, 0.05, 0.1),
            False,
        ),
    ),
}
_VISA = (
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)


def _ranges(rows: tuple[_Row, ...], within: Within) -> CategoryRanges:
    defects = {
        name: Sides((left, right), (low, high), turned)
        for names, left, right, low, high, turned in rows
        for name in names.split()
    }
    # Sorted by name, as record and contact sheet list them.
    return CategoryRanges(within, dict(sorted(defects.items())))


PUBLISHED: dict[str, dict[str, CategoryRanges]] = {
    "anogen-mvtec": {
        name: _ranges(rows, "foreground" if name == "screw" else "template") for name, rows in sorted(_MVTEC.items())
    },
    "anogen-visa": {name: _ranges((("bad", 0.05, 0.2, 0.05, 0.2, True),), "foreground") for name in _VISA},
}
"""Name -> category -> ranges. Templates are not part of it: give a folder of them, or take another `within`."""
