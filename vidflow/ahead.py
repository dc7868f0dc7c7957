"""Items made by a thread while the caller works on those before."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def make_ahead(items: Iterator[Item], *, num_ahead: int = 1) -> Iterator[Item]:
    """Yield the items of an iterator in its order, the next ones made meanwhile by one thread.

    The thread ends with the iterator; what it raises is raised here, in its place.

    Args:
        items: Used by the thread alone.
        num_ahead: Items at most that are ready or in the making beside the one yielded, at least 1.
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
