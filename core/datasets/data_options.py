"""Options that several commands share: the dataset, its category, and the smallest defect in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

CATEGORY = click.option(
    "--category", "--classname", "--class_name", "category", metavar="NAME", help="Category below ROOT, or all."
)

CATEGORIES = click.option(
    *("--category", "--classname", "--class_name", "categories"),
    multiple=True,
    metavar="NAME",
    help="Category below ROOT, several with commas or by giving it again, or all.",
)


def split_categories(named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a repeated option whose values may hold several with commas, each once."""
    return tuple(dict.fromkeys(name.strip() for text in named for name in text.split(",") if name.strip()))


SMALLEST_DEFECT = click.option(
    "--smallest-defect",
    "defect_px",
    type=float,
    metavar="PX",
    help="Thickness in pixels of the smallest defect to be found, for the advice. Default: that of the masks, if any.",
)


def data_option(help_text: str = "The dataset.", *, required: bool = True) -> Callable[[Command], Command]:
    """Return the option that names the dataset; both spellings of the published scripts are accepted."""
    names = ("--data", "--dataset", "--dataset_dir", "data")
    return click.option(*names, type=PATH, required=required, metavar="ROOT", help=help_text)
