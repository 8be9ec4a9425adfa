"""Jobs of a queue of portraits: read from a table, checked before any work, and each run for itself."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from omokage.config import ProgressCallback, ignore_progress
from omokage.errors import InputError, InternalError, OmokageError
from omokage.files import file_digest, is_given_file, read_given_text
from omokage.pipelines.animate import AnimateConfig, animate
from omokage.trust.release import CLIP_SUFFIXES

# Choices that change how a video is made rather than what it shows.
HOW = ("resume", "device", "memory", "compile")
NEEDED, OPTIONAL = ("portrait", "speech", "output"), ("prompt", "seed")


class State(Enum):
    """What became of a job."""

    DONE = "done"
    FINISHED_BEFORE = "finished before"
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """One portrait to animate. `line`: of the table. All paths are absolute."""

    line: int
    portrait: Path
    speech: Path
    output: Path
    config: AnimateConfig

    @property
    def key(self) -> str:
        """Equal when portrait, speech and choices are: the video of a finished job need not be made again."""
        choices = {name: str(value) for name, value in self.config.to_json().items() if name not in HOW}
        digests = [file_digest(self.portrait), file_digest(self.speech)]
        return hashlib.sha256(json.dumps([digests, choices], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    sentences: notes on the video, or why there is none.  exit_code: 0, or that of the failure.
    """

    job: Job
    state: State
    seconds: float = 0.0
    sentences: tuple[str, ...] = ()
    exit_code: int = 0


def read_jobs(table: Path, folder: Path, config: AnimateConfig) -> tuple[Job, ...]:
    """The rows of a CSV file with the columns portrait, speech and output, and prompt and seed if these differ.

    Pictures and sounds are looked for beside the table. Each output is the name of a video in `folder`; `config` is
    what all jobs share. Raises InputError with a sentence for every row that cannot be used.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_given_text(table), newline=""), skipinitialspace=True)
        columns = reader.fieldnames or ()
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(
            f"{table} cannot be read as a table ({getattr(error, 'strerror', None) or error}); a CSV file is needed"
        ) from error
    strange = sorted(set(columns) - {*NEEDED, *OPTIONAL})
    missing = [name for name in NEEDED if name not in columns]
    if strange or missing or not rows:
        raise InputError(
            f"{table} needs a first line with the columns {', '.join(NEEDED)}, if wanted {' and '.join(OPTIONAL)}, and "
            f"a line a job below; got {', '.join(map(str, columns)) or 'nothing'} and {len(rows)} jobs"
        )
    jobs, complaints, taken = list[Job](), list[str](), dict[str, int]()
    for line, row in rows:
        reasons = list(_complaints(row, table.parent, taken))
        complaints += [f"line {line}: {reason}" for reason in reasons]
        if not reasons:
            taken[row["output"].strip()] = line
            jobs.append(_job(line, row, table.parent, folder, config))
    inputs = {path for job in jobs for path in (job.portrait, job.speech)}
    complaints += [
        f"line {job.line}: the output would replace {job.output}, which a job needs"
        for job in jobs
        if job.output in inputs
    ]
    if complaints:
        raise InputError(
            "\n".join([f"{table} has rows that cannot be used; nothing was begun:", *complaints])
        )
    return tuple(jobs)


def run_job(job: Job, on_progress: ProgressCallback = ignore_progress) -> Outcome:
    """Animate one portrait; whatever fails is told in the outcome."""
    begun = time.monotonic()
    try:
        made = animate(
            job.portrait, job.speech, output=job.output, config=job.config, on_progress=on_progress
        )
    except OmokageError as error:
        return Outcome(job, State.FAILED, time.monotonic() - begun, (str(error),), error.exit_code)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        said = f"unexpected error ({cause}); run 'omokage --debug animate' with this job's files"
        return Outcome(job, State.FAILED, time.monotonic() - begun, (said,), InternalError.exit_code)
    return Outcome(job, State.DONE, time.monotonic() - begun, made.notes)


def _complaints(row: Mapping[str, str | None], beside: Path, taken: Mapping[str, int]) -> Iterator[str]:
    """A sentence for everything in a row that cannot be used."""
    if None in row or None in row.values():
        yield "it has more or fewer fields than the first line; put fields with commas between quotes"
        return
    fields = {name: (value or "").strip() for name, value in row.items()}
    for name in ("portrait", "speech"):
        if not fields[name]:
            yield f"it has no {name}"
        elif not is_given_file(beside / fields[name]):
            yield f"the {name} {beside / fields[name]} does not exist"
    output, seed = fields["output"], fields.get("seed", "")
    is_name = Path(output).name == output and output.isprintable() and not set(output) & {"\\", ":"}
    if not is_name or Path(output).suffix.lower() not in CLIP_SUFFIXES:
        yield f"the output '{output}' must be a file name that ends with {' or '.join(CLIP_SUFFIXES)}"
    elif output in taken:
        yield f"the output '{output}' is that of line {taken[output]}, too"
    if seed and not seed.isdecimal():
        yield f"the seed '{seed}' must be a whole number of at least 0"


def _job(line: int, row: Mapping[str, str], beside: Path, folder: Path, config: AnimateConfig) -> Job:
    prompt, seed = row.get("prompt", "").strip(), row.get("seed", "").strip()
    config = replace(
        config,
        prompt=prompt or config.prompt,
        seed=int(seed) if seed else config.seed,
        weights=config.weights.absolute() if config.weights else None,
        lora=config.lora.absolute() if config.lora else None,
    )
    portrait, speech = ((beside / row[name].strip()).absolute() for name in ("portrait", "speech"))
    return Job(line, portrait, speech, (folder / row["output"].strip()).absolute(), config)
