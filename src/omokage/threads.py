"""How many threads linear algebra takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's and SciPy's matrix products on the calling thread alone; PyTorch keeps its threads. Also a decorator.

    Ours are small. Spread over all cores they gain nothing, and the threads that wait for each other do so at full
    speed: with another program on one core, tracking took ten times as long.
    """
    from threadpoolctl import ThreadpoolController

    with ThreadpoolController().limit(limits=1, user_api="blas"):
        yield
