"""Datasets of files that nobody opens: written by their names, and their index as plain rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flawscope.datasets import Dataset


def touch(root: Path, *names: str) -> Path:
    """Write files that hold their own name, for the index never opens an image; return the root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def write_records(path: Path, *records: dict[str, Any]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def touch_recorded(base: Path, *records: dict[str, Any]) -> None:
    """Write the images and masks that records name, below `base`."""
    for record in records:
        touch(base, record["filename"], *([record["maskname"]] if record.get("maskname") else []))


def below(dataset: Dataset, paths: Iterable[Path]) -> list[str]:
    """Return paths relative to the dataset's root."""
    return [path.relative_to(dataset.root).as_posix() for path in paths]


def index(dataset: Dataset) -> list[tuple[str, str, str, str | None]]:
    """Return a dataset as plain rows (path, split, defect, mask), paths below the root."""
    return [(path, split, defect, mask) for path, _, split, defect, mask in index_with_categories(dataset)]


def index_with_categories(dataset: Dataset) -> list[tuple[str, str, str, str, str | None]]:
    """Return a dataset as plain rows (path, category, split, defect, mask), paths below the root."""
    return [
        (
            sample.path.relative_to(dataset.root).as_posix(),
            sample.category,
            sample.split,
            sample.defect,
            sample.mask.relative_to(dataset.root).as_posix() if sample.mask else None,
        )
        for sample in dataset.samples
    ]
