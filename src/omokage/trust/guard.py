"""Work that runs is ended when the consent that it rests on is withdrawn or ends. MAIN: `Guard`.

Whatever shows or learns a person asks again every `CHECK_S` seconds: at the door for every frame that leaves
(`trust.release`), in training and tracking with every report of progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, TypeVar

from omokage.config import Progress, ProgressCallback
from omokage.errors import ConsentError
from omokage.trust.consent import decide
from omokage.trust.consents import Permit, permit, revoked, trusted_keys

# Withdrawals count within 60 s (specification of trust, T14), also where frames or steps take some seconds.
CHECK_S: Final = 20.0

Item = TypeVar("Item")


class Guard:
    """Raises ConsentError as soon as one of the permits no longer holds; without any it never does.

    A consent that was renewed or recorded anew meanwhile is as good as the old one.
    """

    def __init__(
        self,
        *permits: Permit | None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._permits = [each for each in permits if each is not None]
        self._clock, self._now = clock, now
        self._asked = clock()

    def check(self) -> None:
        """Ask if it is time to; takes no time otherwise."""
        if self._clock() - self._asked >= CHECK_S:
            self.check_now()

    def check_now(self) -> None:
        """Ask: before something takes its name."""
        self._permits = [_again(each, self._now()) for each in self._permits]
        self._asked = self._clock()

    def frames(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same, as long as they are permitted, and their end only if they still are."""
        for item in items:
            self.check()
            yield item
        self.check_now()

    def progress(self, on_progress: ProgressCallback) -> ProgressCallback:
        """The same callback, which raises when what it reports of is no longer permitted."""

        def asking(report: Progress) -> None:
            self.check()
            on_progress(report)

        return asking


def _again(permitted: Permit, now: datetime) -> Permit:
    """The permit for the same use; first by the record that it rests on, since to read all takes longer."""
    decision = decide(permitted.consent, permitted.use, now=now, trusted=trusted_keys(), revoked=revoked(now))
    if decision.is_allowed:
        return permitted
    try:
        return permit(permitted.use, name=permitted.name, now=now)
    except ConsentError as error:
        raise ConsentError(f"stopped: {error}") from error
