"""Range files of `synth masks`: where masks may lie per category, and their sides per defect type.

{"bottle": {"within": "foreground",
            "defects": {"crack": {"width": [0.05, 0.1], "height": [0.1, 0.2], "rotate": true}}}}

or the form of AnoGen's own files, in which the flag is a text, and masks lie in templates unless another `within` is
asked for:

{"bottle": {"crack": [[0.05, 0.1], [0.1, 0.2], "True"]}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from flawscope.datasets.defects.file_names import check_defect_name, check_name
from flawscope.datasets.defects.random_masks import Sides
from flawscope.datasets.defects.set_files import decode_json, read_json
from flawscope.errors import ArgumentError, DataError

Within = Literal["template", "foreground", "image", "picture"]
"""Where masks lie. `picture` is the former name of `image`; files of earlier versions have it."""


class CategoryRanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mask ranges of one category.

    Attributes:
        within: Where masks lie: in a hand-drawn "template", in the "foreground" of each normal image, or anywhere in
            the "image", for parts that fill it.
        defects: Defect type -> sides of its masks.
    """

    within: Within
    defects: dict[str, Sides]


def read_ranges(path: Path) -> dict[str, CategoryRanges]:
    """Read a range file.

    Raises:
        DataError: If the file is not a range file, or a name or number in it is not allowed; the message says where.
    """
    raw = read_json(path, dict[str, msgspec.Raw], "a range file (category -> within, defects)")
    ranges = {check_name(name, f"{path}: category"): _category(path, name, entry) for name, entry in raw.items()}
    if not ranges:
        raise DataError(f"{path}: expected at least one category, got none. Add one.")
    return ranges


_FORM = '{"within": "foreground", "defects": {"DEFECT": {"width": [0.05, 0.1], "height": [0.1, 0.2], "rotate": true}}}'
_FORM_OF_ANOGEN = '{"DEFECT": [[0.05, 0.1], [0.1, 0.2], "True"]}'
_FLAGS = {"True": True, "False": False}


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    width: tuple[float, float]
    height: tuple[float, float]
    flag: Literal["True", "False"]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    within: Within
    defects: dict[str, msgspec.Raw]


def _category(path: Path, category: str, data: msgspec.Raw) -> CategoryRanges:
    keys = decode_json(data, dict[str, msgspec.Raw], f"{path}: {category}", f"{_FORM} or {_FORM_OF_ANOGEN}")
    if keys and not {"within", "defects"} & keys.keys():
        return CategoryRanges("template", {name: _of_anogen(path, category, name, raw) for name, raw in keys.items()})
    # One by one: msgspec's errors do not name the key of a dictionary.
    entry = decode_json(data, _Entry, f"{path}: {category}", _FORM)
    defects = {
        check_defect_name(name, f"{path}: {category}: defect type"): decode_json(
            sides, Sides, f"{path}: {category}/{name}", "width, height and rotate"
        )
        for name, sides in entry.defects.items()
    }
    if not defects:
        raise DataError(f"{path}: {category}: expected at least one defect type, got none. Add one.")
    return CategoryRanges(entry.within, defects)


def _of_anogen(path: Path, category: str, name: str, data: msgspec.Raw) -> Sides:
    """Return sides in AnoGen's form: ranges of width and height, and whether masks are rotated, as a text."""
    where = f"{path}: {category}/{check_defect_name(name, f'{path}: {category}: defect type')}"
    what = '[[least, largest width], [least, largest height], "True" or "False"]'
    row = decode_json(data, _Row, where, what)
    try:
        return Sides(row.width, row.height, _FLAGS[row.flag])
    except ArgumentError as err:
        raise DataError(f"{where}: expected {what}, got: {err} Mend the file.") from err


def choose_ranges(
    ranges: Mapping[str, CategoryRanges], categories: tuple[str, ...], within: Within | None
) -> dict[str, CategoryRanges]:
    """Return the ranges of some categories, or of all; `within`, if given, replaces theirs.

    Raises:
        DataError: If a category has no ranges.
    """
    for category in categories:
        if category not in ranges:
            names = ", ".join(sorted(ranges))
            raise DataError(f"ranges: expected an entry for the category {category}, got those of {names}. Add it.")
    # Sorted: the order of categories in the file changes no mask.
    chosen = {category: ranges[category] for category in sorted(categories or ranges)}
    if within is None:
        return chosen
    return {category: CategoryRanges(within, entry.defects) for category, entry in chosen.items()}
