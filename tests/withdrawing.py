"""A consent that is withdrawn while work runs, for tests with a home of their own."""

from __future__ import annotations

from omokage.config import Progress
from omokage.trust import consents


class Withdrawing:
    """A progress callback: every consent is withdrawn when a stage has come so far."""

    def __init__(self, stage: str, done: float = 0) -> None:
        self.stage, self.done, self.left = stage, done, False

    def __call__(self, report: Progress) -> None:
        if not self.left and report.stage == self.stage and report.done >= self.done:
            self.left = True
            for record in consents.all_records():
                consents.revoke(record, "asked to stop")
