"""All that is named for a plan, as items: one after the other, so that ten million need no more memory than ten."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from flawscope.errors import ArgumentError
from flawscope.files import free_name
from flawscope.imaging.image_files import is_folder
from flawscope.runtime.scale.inputs.files import list_below, named_file
from flawscope.runtime.scale.inputs.items import Found, Item


def list_items(named: Sequence[str | Path], *, column: str | None = None, found: Found | None = None) -> Iterator[Item]:
    """Yield the images that are named, in the order in which they are, each once.

    Images of one folder keep their folders below it in `Item.place`; those of several lie below the name of theirs.
    What does not exist stays: it becomes a fault with its reason, and the others are scored.

    Args:
        named: Images and folders. A `Path` is one of this machine, whatever is in its name.
        column: Column of Parquet tables that has the images; None: by type and name.
        found: Gets what is met beside images.

    Raises:
        ArgumentError: If something that is named has no image.
    """
    found = Found() if found is None else found
    seen, places = set[tuple[str, tuple[str | int, ...]]](), set[str]()
    count = 0
    for item in _all(named, found):
        if (item.name, item.where) in seen:
            continue
        seen.add((item.name, item.where))
        count += 1
        yield item if item.fault else msgspec.structs.replace(item, place=free_name(item.place, places))
    if not count:  # nothing but links that go round
        raise _no_image(Path(named[0]) if named else Path())


def _all(named: Sequence[str | Path], found: Found) -> Iterator[Item]:
    paths = [Path(name) for name in named]
    tops = set[str]()
    has_several = sum(is_folder(path) for path in paths) > 1
    for path in paths:
        if not is_folder(path):
            yield named_file(path, path.stem)
            continue
        top = free_name(path.name or Path(os.path.abspath(path)).name or "images", tops) if has_several else ""  # noqa: PTH100
        again, count = len(found.again), 0
        for item in list_below(path, top, found):
            count += 1
            yield item
        if not count and len(found.again) == again:
            raise _no_image(path)


def _no_image(folder: Path) -> ArgumentError:
    return ArgumentError(f"{folder}: expected images in this folder or below, got none. Name images or their folder.")
