"""Results of items, in order: what can be read goes through the inspector, and what cannot is a fault."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from flawscope.runtime.frame import Frame
from flawscope.runtime.image_sources import Source
from flawscope.runtime.reading_ahead import load_ahead
from flawscope.runtime.results import Result, fault_reason
from flawscope.runtime.scale.inputs.items import Item

_THREADS = 8
"""Images that are read at once: an object store answers each after some hundredths of a second."""


class Scored(NamedTuple):
    """An item, its image (None where it could not be read), and its result."""

    item: Item
    image: Source | None
    result: Result


def results_of(
    items: Iterable[Item],
    read: Callable[[Item], Source],
    stream: Callable[[Iterator[Source | Frame]], Iterator[Result]],
    ahead: int,
) -> Iterator[Scored]:
    """Yield the result of every item, in order; what cannot be read is a fault, and the others are scored.

    Args:
        items: The items.
        read: Reads one, as `Reader.read` does; several threads call it.
        stream: Inspects images, as `Inspector.stream` does with its other arguments given.
        ahead: Images that are read before they are asked for.
    """
    waiting: deque[_Loaded] = deque()
    ahead = max(ahead, _THREADS)

    def load(item: Item) -> _Loaded:
        try:
            return _Loaded(item, read(item), "")
        except Exception as err:
            return _Loaded(item, None, fault_reason(err, item.name))

    def images() -> Iterator[Source | Frame]:
        with contextlib.closing(load_ahead(items, load, ahead, _THREADS)) as loaded:
            for one in loaded:
                waiting.append(one)
                if one.image is not None:
                    # What comes as bytes has no name of its own.
                    yield Frame(one.image, one.item.name) if isinstance(one.image, bytes) else one.image

    for result in stream(images()):
        while waiting[0].image is None:
            yield _faulty(waiting.popleft())
        item, image, _ = waiting.popleft()
        yield Scored(item, image, result if result.image == item.name else replace(result, image=item.name))
    while waiting:
        yield _faulty(waiting.popleft())


class _Loaded(NamedTuple):
    item: Item
    image: Source | None
    fault: str


def _faulty(loaded: _Loaded) -> Scored:
    return Scored(loaded.item, None, Result(loaded.item.name, "fault", reason=loaded.fault))
