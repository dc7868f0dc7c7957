"""Make items in a thread while the caller works on earlier ones."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def make_ahead(items: Iterator[Item], *, num_ahead: int = 1) -> Iterator[Item]:
    """Yield the items of an iterator in order, while one thread makes the next ones.

    The thread ends with this generator. An exception of the iterator is raised here, after the items before it.

    Args:
        items: The iterator; only the thread uses it.
        num_ahead: Largest number of items that are ready or in progress, without the one yielded; at least 1.
    """
    coming: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        try:
            while True:
                while len(coming) <= num_ahead:
                    coming.append(thread.submit(next, items, _END))
                item = coming.popleft().result()
                if item is _END:
                    return
                yield item
        finally:
            for future in coming:
                future.cancel()
