"""Progress records -> a bar with the time left on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from omokage.config import Progress

LINE_EVERY_S = 10.0
BAR = "{desc}: {percentage:3.0f} % |{bar}| {elapsed} gone, {remaining} left{postfix}"
COUNTER = "{desc}: {n:.0f} done, {elapsed} gone{postfix}"


class ProgressBar:
    """A `ProgressCallback` that writes to stderr; use it in a `with` block, so that the last bar is closed.

    On a terminal every stage gets one tqdm bar, which stays visible when the stage is done. Elsewhere a stage gets a
    line when it begins, one when it ends and one every `LINE_EVERY_S` seconds between. A stage that is done at its
    first record only says its note.
    """

    def __init__(self, *, is_quiet: bool = False, is_terminal: bool | None = None) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._bar: tqdm[NoReturn] | None = None
        self._stage: str | None = None
        self._began = self._printed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, progress: Progress) -> None:
        """Show one record."""
        if self._is_quiet:
            return
        is_new = progress.stage != self._stage
        self._stage = progress.stage
        if progress.total:
            progress = replace(progress, done=min(progress.done, progress.total))
        if is_new and progress.note and 0 < progress.total <= progress.done:
            self._close()
            sys.stderr.write(f"{progress.stage}: {progress.note}\n")
            sys.stderr.flush()
        elif self._is_terminal:
            self._draw(progress, is_new=is_new)
        else:
            self._print_line(progress, is_new=is_new)

    def _draw(self, progress: Progress, *, is_new: bool) -> None:
        if is_new:
            self._close()
        if self._bar is None:
            form = BAR if progress.total else COUNTER
            self._bar = tqdm(
                desc=progress.stage, file=sys.stderr, dynamic_ncols=True, bar_format=form, mininterval=0.2
            )
        bar: tqdm[NoReturn] = self._bar
        bar.total = progress.total or None
        bar.set_postfix_str(progress.note, refresh=False)
        bar.update(progress.done - bar.n)
        if 0 < progress.total <= progress.done:
            bar.refresh()

    def _print_line(self, progress: Progress, *, is_new: bool) -> None:
        now = time.monotonic()
        if is_new:
            self._began = now
        is_done = 0 < progress.total <= progress.done
        if not (is_new or is_done or now - self._printed >= LINE_EVERY_S):
            return
        self._printed = now
        words = [f"{progress.done:.0f}"]
        if progress.total:
            words = [f"{100 * progress.done / progress.total:.0f} %"]
            elapsed = now - self._began
            if elapsed > 0 and 0 < progress.done < progress.total:
                left = elapsed / progress.done * (progress.total - progress.done)
                words.append(f"{tqdm.format_interval(left)} left")
        if progress.note:
            words.append(progress.note)
        sys.stderr.write(f"{progress.stage}: {', '.join(words)}\n")
        sys.stderr.flush()
