"""Items loaded by a thread while those before them are worked on: order kept, number bounded, no thread left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def load_ahead(
    items: Iterable[Item], load: Callable[[Item], Loaded], ahead: int, threads: int = 1
) -> Generator[Loaded, None, None]:
    """Yield `load(item)` for every item, in their order.

    Items are taken by the thread of the caller, and loaded by one other thread, one after the other, or by several. The
    threads end with the iterator: when it is exhausted, closed, or gives an error.

    Args:
        items: What is to be loaded.
        load: Loads one item. It runs while the caller works on those before.
        ahead: Most items that are taken and loaded before the caller asks for them; 0 takes each when it is asked for,
            without a thread.
        threads: How many load; several where loading waits for something, such as a network.

    Raises:
        Exception: What `load` or `items` raises, after the results of all items before it.
    """
    if ahead == 0:
        yield from map(load, items)
        return
    remaining, pending = iter(items), deque[Future[Loaded]]()
    failure: Exception | None = None
    is_over = False
    with ThreadPoolExecutor(threads, thread_name_prefix="flawscope-ahead") as reader:
        try:
            while True:
                while not is_over and len(pending) <= ahead:
                    try:
                        pending.append(reader.submit(load, next(remaining)))
                    except StopIteration:
                        is_over = True
                    # Kept until its turn: without a thread, what came before had been yielded by now.
                    except Exception as err:
                        failure, is_over = err, True
                if not pending:
                    break
                yield pending.popleft().result()
        finally:
            # Not the loading of what nobody will ask for: after an error, or where the caller has seen enough.
            reader.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure
