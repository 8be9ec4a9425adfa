"""How many threads linear algebra takes, and work that is done ahead on another one."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
TURN_S = 0.0001
_END = object()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's and SciPy's matrix products on the calling thread alone; PyTorch keeps its threads. Also a decorator.

    Ours are small. Spread over all cores they gain nothing, and the threads that wait for each other do so at full
    speed: with another program on one core, tracking took ten times as long.
    """
    from threadpoolctl import ThreadpoolController

    with ThreadpoolController().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def quick_turns() -> Iterator[None]:
    """Python's threads hand over to each other fifty times sooner than usual, for stages that wait for each other.

    A thread that comes back from native code waits until another one's turn is over, by default up to 5 ms each time.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; the next one is computed on another thread while this one is used."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = worker.submit(next, items, _END)
            yield item  # type: ignore[misc]
