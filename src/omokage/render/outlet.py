"""Where pictures meet their sound: every frame leaves in order, with its own sound and the newest picture there is.

    told: 5, 6, 7    drawn: 7    leaves: 5 and 6 with the picture before, 7 with its own

A picture that was not drawn is replaced by the one before it, so a slow machine shows fewer pictures and loses no
sound, and whoever counts frames or samples finds all of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Moment = TypeVar("Moment")
Picture = TypeVar("Picture")


@dataclass(frozen=True, slots=True)
class Leaving(Generic[Moment, Picture]):
    """A frame as it leaves. picture_index: of the frame that its picture was drawn for; `index` unless that one was
    dropped, or has not come in time."""

    index: int
    moment: Moment
    picture: Picture
    picture_index: int


@dataclass(frozen=True, slots=True)
class _Expected(Generic[Moment]):
    index: int
    moment: Moment
    since_s: float
    is_drawn: bool


class Outlet(Generic[Moment, Picture]):
    """Holds at most `room` frames. first: the picture to show before any was drawn."""

    def __init__(self, first: Picture, *, room: int) -> None:
        self._changed = threading.Condition()
        self._expected: deque[_Expected[Moment]] = deque()
        self._drawn: deque[tuple[int, Picture]] = deque()  # each for one of the expected
        self._shown = (-1, first)
        self._room = room
        self._given_up = -1  # frames until this one wait no longer for their picture
        self._is_closed = False
        self._error: BaseException | None = None

    @property
    def is_closed(self) -> bool:
        """No frame can be expected any more."""
        return self._is_closed

    def wait_for_room(self, timeout_s: float) -> bool:
        """Until a frame can be expected; False when that takes longer, or will never be."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._expected) < self._room or self._is_closed, timeout_s)
            return len(self._expected) < self._room and not self._is_closed

    def expect(self, index: int, moment: Moment, now_s: float, *, is_drawn: bool = True) -> None:
        """The next frame is on its way; one that is not drawn waits for no picture."""
        with self._changed:
            self._expected.append(_Expected(index, moment, now_s, is_drawn))
            self._changed.notify_all()

    def put(self, drawn: tuple[int, Picture]) -> bool:
        """The picture of a frame; those before it are not awaited any more. False when none leaves any more."""
        with self._changed:
            if self._is_closed:
                return False
            self._drawn.append(drawn)
            self._changed.notify_all()
            return True

    def give_up(self, before_s: float) -> None:
        """Frames that were expected before that time leave, with whatever picture there is."""
        with self._changed:
            for expected in self._expected:
                if expected.since_s < before_s:
                    self._given_up = expected.index
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """No picture comes any more; the frames that are expected leave, and then `error` is raised."""
        with self._changed:
            self._is_closed, self._error = True, self._error or error
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Leaving[Moment, Picture]]:
        """Frames as they become ready. Raises what it was closed with."""
        while True:
            with self._changed:
                self._changed.wait_for(self._is_ready)
                if not self._expected:
                    if self._error is not None:
                        raise self._error
                    return
                expected = self._expected.popleft()
                while self._drawn and self._drawn[0][0] <= expected.index:
                    self._shown = self._drawn.popleft()
                self._changed.notify_all()
            yield Leaving(expected.index, expected.moment, self._shown[1], self._shown[0])

    def _is_ready(self) -> bool:
        if self._is_closed or not self._expected:
            return self._is_closed
        first = self._expected[0]
        has_picture = bool(self._drawn and self._drawn[-1][0] >= first.index)
        return has_picture or not first.is_drawn or first.index <= self._given_up
