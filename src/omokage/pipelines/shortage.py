"""When memory runs out: what is said, and which memory profile several processes begin with the next time.

One process falls back by itself (see `talking.placement.falling_back`). Several cannot: the others wait for the one
that failed until all are stopped. So it leaves a note beside the finished windows, and the next start of the same
command, which `torchrun --max-restarts` makes by itself, passes over the profile that was too large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from omokage.errors import MemoryShortageError, OmokageError
from omokage.pipelines.animate_plan import AnimationPlan
from omokage.pipelines.window_files import WindowFiles
from omokage.talking.placement import is_shortage, profiles
from omokage.workers import Workers

# What the exchange between processes says when one of them is gone.
LOST_WORDS = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")


@dataclass(frozen=True)
class Start:
    """The plan of this start, and sentences on the profiles that it passes over."""

    plan: AnimationPlan
    notes: tuple[str, ...] = ()


def agreed_start(plan: AnimationPlan, workers: Workers, files: WindowFiles) -> Start:
    """The plan as it is; for several processes with one memory profile: the first one's first that never ran short.

    files: of the same animation, as a stopped run left them. Raises MemoryShortageError when there is none left.
    """
    start = Start(plan)
    if workers.world > 1:
        start = _untried(plan, files) if workers.is_first else start
        known = profiles()
        mine = known.index(start.plan.options[0].profile) if start.plan.options else -1
        chosen = int(workers.agree(mine)[0])
        can_shrink = workers.agree(float(len(start.plan.options) > 1))[0] > 0
        if chosen < 0 or not plan.options:
            shortage = start.plan.shortage or "the first process has too little memory"
            raise MemoryShortageError(shortage)
        options = (replace(plan.options[0], profile=known[chosen]),)
        start = replace(start, plan=replace(plan, options=options, can_shrink=can_shrink))
    if not start.plan.options:
        raise MemoryShortageError(start.plan.shortage)
    return start


@contextmanager
def shortage_told(plan: AnimationPlan, workers: Workers, files: WindowFiles) -> Iterator[None]:
    """Say in one sentence that memory ran out before the first window, or in one of several processes, or that one of
    them is gone."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if workers.world > 1 and any(words in str(error).lower() for words in LOST_WORDS):
            raise OmokageError(
                f"process {workers.rank + 1} of {workers.world} stopped, since it lost another one, which says why; "
                "the same command goes on after the last finished window"
            ) from error
        if not is_shortage(error):
            raise
        advice = "close other programs, or use a larger machine"
        when = "while the inputs were prepared"
        if workers.world > 1:
            when = f"in process {workers.rank + 1} of {workers.world}"
            if files.note_shortage(plan.options[0].profile.name) and plan.can_shrink:
                advice = "the same command goes on with the next smaller profile, as 'torchrun --max-restarts 4' does"
            else:
                advice = "choose a smaller profile with --memory, or use a larger machine"
        raise MemoryShortageError(
            f"memory ran out on {plan.device} {when}; {plan.options[0].sentence}: {advice}"
        ) from error


def _untried(plan: AnimationPlan, files: WindowFiles) -> Start:
    """The options that did not run short in an earlier start; when all did, none: the next start tries all again."""
    short = files.shortages
    left = tuple(option for option in plan.options if option.profile.name not in short)
    if short and not left:
        files.forget_shortages()
        return Start(replace(plan, options=(), shortage=f"memory ran out with {', '.join(sorted(short))}"))
    tried = [option.profile.name for option in plan.options if option.profile.name in short]
    notes = tuple(
        f"memory ran out with the profile '{name}' before; going on with '{left[0].profile.name}'"
        for name in tried
    )
    return Start(replace(plan, options=left), notes)
