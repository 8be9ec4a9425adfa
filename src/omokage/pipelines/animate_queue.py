"""`omokage animate-queue`: a table of portraits and voices becomes a folder of videos. MAIN: `animate_queue`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.files import parse_json, result_folder, saving
from omokage.pipelines.animate import AnimateConfig
from omokage.pipelines.queue_jobs import Job, Outcome, State, read_jobs, run_job
from omokage.pipelines.queue_ray import run_with_ray
from omokage.weights import installed
from omokage.workers import world_size

RECORD = "queue.json"
# Jobs -> what became of them, each as it ends, in any order.
Runner = Callable[[Sequence[Job]], Iterator[Outcome]]


@dataclass(frozen=True)
class QueueReport:
    """What became of every job, in the order of the table."""

    outcomes: tuple[Outcome, ...]

    @property
    def exit_code(self) -> int:
        """0, or that of the first job that failed."""
        return next((outcome.exit_code for outcome in self.outcomes if outcome.exit_code), 0)

    def to_text(self) -> str:
        """A line a job, and the count of each state."""
        width = max(len(outcome.job.output.name) for outcome in self.outcomes)
        lines = []
        for outcome in self.outcomes:
            minutes = f"{outcome.seconds / 60:8.1f} min" if outcome.state is State.DONE else ""
            why = "; ".join(outcome.sentences) if outcome.state is State.FAILED else ""
            lines.append(
                f"{outcome.job.output.name:<{width}}  {outcome.state.value:<15}{minutes}{why}".rstrip()
            )
        counts = [sum(outcome.state is state for outcome in self.outcomes) for state in State]
        told = [f"{count} {state.value}" for state, count in zip(State, counts, strict=True) if count]
        return "\n".join([*lines, ", ".join(told)])


def animate_queue(
    table: Path,
    *,
    output: Path,
    config: AnimateConfig | None = None,
    ray: str | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> QueueReport:
    """Animate every row of a table, see `read_jobs`, into the folder `output`.

    A job that fails stops no other. What was finished before, with the same files and choices, is not made again; a
    stopped job goes on. ray: None for one job after the other, or the address of a Ray cluster, or 'local'.
    Raises InputError before any work for rows that cannot be used, WeightsError without the model, OutputError,
    MissingDependencyError without Ray.
    """
    config, table, output = config or AnimateConfig(), Path(table), Path(output)
    if world_size() > 1:
        raise InputError("a queue gives every job to one device; start it without torchrun")
    jobs = read_jobs(table, output, config)
    run: Runner = partial(in_turn, on_progress=on_progress)
    if ray is not None:
        run = partial(run_with_ray, run=run_job, address=ray, on_card=config.device != "cpu")
    elif config.weights is None:
        installed("hallo3")  # said once, not of every job
    with result_folder(output):
        pass  # made or refused; what is in it is kept, whatever happens
    return run_queue(jobs, output / RECORD, run, on_progress)


def run_queue(
    jobs: Sequence[Job], record: Path, run: Runner, on_progress: ProgressCallback = ignore_progress
) -> QueueReport:
    """Run the jobs that are not finished, as `record` tells, a file that is written after each. Raises OutputError."""
    known, keys = _read_record(record), {job.output.name: job.key for job in jobs}
    outcomes, waiting = dict[int, Outcome](), list[Job]()
    for job in jobs:
        name = job.output.name
        if known.get(name, {}).get("key") == keys[name] and job.output.is_file():
            outcomes[job.line] = Outcome(job, State.FINISHED_BEFORE)
        else:
            waiting.append(job)
    on_progress(Progress("queue", len(outcomes), len(jobs), f"{len(outcomes)} finished before"))
    for outcome in run(waiting) if waiting else ():
        name = outcome.job.output.name
        outcomes[outcome.job.line] = outcome
        known[name] = {
            "key": keys[name] if outcome.state is State.DONE else "",
            "state": outcome.state.value,
            "seconds": round(outcome.seconds, 1),
            "said": list(outcome.sentences),
        }
        with saving(record) as part:
            part.write_text(json.dumps(known, indent=1), encoding="utf-8")
        on_progress(Progress("queue", len(outcomes), len(jobs), f"{name} {outcome.state.value}"))
    return QueueReport(tuple(outcomes[job.line] for job in jobs))


def in_turn(jobs: Sequence[Job], on_progress: ProgressCallback = ignore_progress) -> Iterator[Outcome]:
    """Run one job after the other in this process."""
    for number, job in enumerate(jobs, 1):
        on_progress(Progress(f"job {number} of {len(jobs)}", 1, 1, job.output.name))
        yield run_job(job, on_progress)


def _read_record(path: Path) -> dict[str, Any]:
    """What is known of earlier calls; nothing where the file is missing or damaged: then jobs are made again."""
    try:
        known = parse_json(path.read_text(encoding="utf-8"))
        return {name: dict(entry) for name, entry in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
