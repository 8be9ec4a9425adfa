"""Stages of live work, each on a thread of its own, with at most one item waiting between two of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
Given = TypeVar("Given", contravariant=True)


class Target(Protocol[Given]):
    """Where a stage puts what it made."""

    def put(self, item: Given, /) -> bool:
        """False when nobody will take anything any more."""
        ...

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more will be put."""
        ...


class Place(Generic[Item]):
    """A hand-over that holds one item. `put` replaces an item that was not taken, or waits if `keep_all`."""

    def __init__(self, *, keep_all: bool) -> None:
        self._keep_all = keep_all
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._is_closed = False
        self._error: BaseException | None = None
        self.dropped = 0

    def put(self, item: Item) -> bool:
        """False when nobody will take anything any more."""
        with self._changed:
            while self._keep_all and self._item is not None and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return False
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify_all()
            return True

    def __iter__(self) -> Iterator[Item]:
        """Items until the place is closed. Raises what it was closed with."""
        while True:
            with self._changed:
                while self._item is None and not self._is_closed:
                    self._changed.wait()
                item, self._item = self._item, None
                self._changed.notify_all()
            if item is None:
                if self._error is not None:
                    raise self._error
                return
            yield item

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more will be put; what is held can still be taken."""
        with self._changed:
            self._is_closed, self._error = True, self._error or error
            self._changed.notify_all()


def each(
    source: Iterable[Item], target: Target[Made], times: deque[float], work: Callable[[Item], Made]
) -> None:
    """One stage: `work` for every item, until either side is closed."""
    for item in source:
        start = time.monotonic()
        made = work(item)
        times.append(time.monotonic() - start)
        if not target.put(made):
            return


def start(work: Callable[[], None], output: Target[Any]) -> threading.Thread:
    """Run a stage on its own thread; its end or its error closes its output."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            output.close(error)
        else:
            output.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
