"""Types of defects that reviewers name: folders of a data set are called like them."""

from __future__ import annotations

import re

from flawscope.datasets.mask_pairing import is_mask_folder
from flawscope.part_words import GOOD, GOOD_NAMES

UNNAMED = "defect"
"""Folder of anomalous images whose type nobody has named."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _-]{0,38}[A-Za-z0-9])?")
_TAKEN = frozenset({*GOOD_NAMES, "train", "test", "val", "validation"})

__all__ = ["GOOD", "UNNAMED", "problem_of"]


def problem_of(name: str) -> str:
    """Return why a name can be no type of a defect; empty where it can."""
    if not _NAME.fullmatch(name):
        return "expected at most 40 letters, digits, spaces, - and _, with a letter or digit at both ends"
    if name.lower() in _TAKEN or is_mask_folder(name):
        return "expected the name of a defect, got one that data sets use for something else"
    return ""
