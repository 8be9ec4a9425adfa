"""A queue of portraits: what is refused before any work, what runs, what is kept, what is told."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import omokage.pipelines.queue_jobs as queue_jobs
from omokage.config import Progress
from omokage.errors import InputError, MissingDependencyError, NoFaceError, WeightsError
from omokage.pipelines.animate import AnimateConfig
from omokage.pipelines.animate_queue import RECORD, QueueReport, animate_queue, in_turn, run_queue
from omokage.pipelines.queue_jobs import Job, Outcome, State, read_jobs, run_job
from omokage.pipelines.queue_ray import run_with_ray


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two portraits and a voice."""
    for name in ("anna.png", "ben.png", "voice.wav"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def animated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of outputs, as a stand-in for the animation is asked for them; it refuses the portrait ben.png."""
    asked: list[str] = []

    def animate(portrait: Path, speech: Path, *, output: Path, **_: Any) -> Any:
        asked.append(output.name)
        if portrait.name == "ben.png":
            raise NoFaceError("ben.png shows no face")
        output.write_bytes(b"video")
        return SimpleNamespace(notes=("the speech is silent",))

    monkeypatch.setattr(queue_jobs, "animate", animate)
    return asked


def table(folder: Path, *rows: str, first: str = "portrait,speech,prompt,seed,output") -> Path:
    path = folder / "jobs.csv"
    path.write_text("\n".join([first, *rows]) + "\n", encoding="utf-8")
    return path


def jobs_of(folder: Path, *rows: str, **choices: Any) -> tuple[Job, ...]:
    return read_jobs(table(folder, *rows), folder / "videos", AnimateConfig(weights=folder, **choices))


THREE = ("anna.png,voice.wav,,,a.mp4", 'ben.png,voice.wav,"sea, wind",7,b.mp4', "anna.png,voice.wav,,8,c.mp4")


# the table


def test_rows_become_jobs(folder: Path) -> None:
    first, second, third = jobs_of(folder, *THREE, prompt="a room", seed=3, steps=20)
    assert [job.line for job in (first, second, third)] == [2, 3, 4]
    assert (first.portrait, first.speech) == (folder / "anna.png", folder / "voice.wav")
    assert first.output == folder / "videos" / "a.mp4"
    assert (first.config.prompt, first.config.seed, first.config.steps) == ("a room", 3, 20)
    assert (second.config.prompt, second.config.seed) == ("sea, wind", 7)
    # Columns in any order, with spaces; prompt and seed may be missing; a mark before the first letter is skipped.
    path = folder / "few.csv"
    path.write_text("output, speech, portrait\na.mp4, voice.wav, anna.png\n\n", encoding="utf-8-sig")
    (job,) = read_jobs(
        path, folder / "videos", AnimateConfig(prompt="a room", seed=3, steps=20, weights=folder)
    )
    assert job == first


def test_every_bad_row_is_told_with_its_line_before_any_work(folder: Path, animated: list[str]) -> None:
    path = table(
        folder,
        "anna.png,voice.wav,,,a.mp4",
        "anne.png,,,,b.mp4",
        "anna.png,voice.wav,,-1,c.mp4",
        "anna.png,voice.wav,,,../d.mp4",
        "anna.png,voice.wav,,,a.mp4",
        "anna.png,voice.wav,sea, wind,,e.mp4",
        "anna.png,voice.wav",
    )
    with pytest.raises(InputError) as told:
        animate_queue(path, output=folder / "videos", config=AnimateConfig(weights=folder))
    first, *lines = str(told.value).splitlines()
    assert first == f"{path} has rows that cannot be used; nothing was begun:"
    assert lines == [
        f"line 3: the portrait {folder / 'anne.png'} does not exist",
        "line 3: it has no speech",
        "line 4: the seed '-1' must be a whole number of at least 0",
        "line 5: the output '../d.mp4' must be a file name that ends with .mp4 or .mov or .webm",
        "line 6: the output 'a.mp4' is that of line 2, too",
        "line 7: it has more or fewer fields than the first line; put fields with commas between quotes",
        "line 8: it has more or fewer fields than the first line; put fields with commas between quotes",
    ]
    assert animated == [] and not (folder / "videos").exists()


def test_no_output_replaces_what_a_job_needs(folder: Path) -> None:
    (folder / "clip.mp4").write_bytes(b"clip")
    path = table(folder, "anna.png,clip.mp4,,,a.mp4", "anna.png,voice.wav,,,clip.mp4")
    with pytest.raises(InputError, match=r"line 3: the output would replace .*clip\.mp4, which a job needs"):
        read_jobs(path, folder, AnimateConfig())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"portrait,speech\nanna.png,voice.wav\n",
            "needs a first line with the columns portrait, speech, output",
        ),
        (b"portrait,speech,output,mood\n", "got portrait, speech, output, mood and 0 jobs"),
        (b"", "got nothing and 0 jobs"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
    ],
)
def test_other_files_are_no_tables(content: bytes, said: str, folder: Path) -> None:
    (folder / "jobs.csv").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_jobs(folder / "jobs.csv", folder, AnimateConfig())
    with pytest.raises(InputError, match=r"cannot be read as a table .No such file"):
        read_jobs(folder / "none.csv", folder, AnimateConfig())


# the work


def test_a_failure_stops_no_other_job_and_a_second_call_makes_what_is_missing(
    folder: Path, animated: list[str]
) -> None:
    path, videos, config = table(folder, *THREE), folder / "videos", AnimateConfig(weights=folder)
    seen: list[Progress] = []
    report = animate_queue(path, output=videos, config=config, on_progress=seen.append)
    assert animated == ["a.mp4", "b.mp4", "c.mp4"]
    assert [outcome.state for outcome in report.outcomes] == [State.DONE, State.FAILED, State.DONE]
    assert report.exit_code == NoFaceError.exit_code
    assert [progress.done for progress in seen if progress.stage == "queue"] == [0, 1, 2, 3]
    known = json.loads((videos / RECORD).read_text())
    assert known["b.mp4"]["said"] == ["ben.png shows no face"] and known["a.mp4"]["said"] == [
        "the speech is silent"
    ]
    lines = report.to_text().splitlines()
    assert lines[0].split() == ["a.mp4", "done", "0.0", "min"]
    assert lines[1] == "b.mp4  failed         ben.png shows no face"
    assert lines[3] == "2 done, 1 failed"

    # Again: only the failed one, the one that was lost, and the one of which something changed.
    animated.clear()
    assert animate_queue(path, output=videos, config=replace(config, memory="grouped")).exit_code == 2
    assert animated == ["b.mp4"]
    animated.clear()
    (videos / "c.mp4").unlink()
    (folder / "anna.png").write_bytes(b"another picture")
    table(folder, THREE[0], THREE[1].replace("ben", "anna"), THREE[2])
    report = animate_queue(path, output=videos, config=config)
    assert animated == ["a.mp4", "b.mp4", "c.mp4"] and report.exit_code == 0
    animated.clear()
    report = animate_queue(path, output=videos, config=config)
    assert animated == [] and report.to_text().endswith("\n3 finished before")
    # A damaged record costs work, no video.
    (videos / RECORD).write_text("[")
    assert animate_queue(path, output=videos, config=config).exit_code == 0 and len(animated) == 3


def test_a_stop_keeps_what_was_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, animated: list[str]
) -> None:
    def stopped(job: Job, *_: Any) -> Outcome:
        if job.output.name == "c.mp4":
            raise KeyboardInterrupt
        return run_job(job)

    monkeypatch.setattr("omokage.pipelines.animate_queue.run_job", stopped)
    videos = folder / "videos"
    with pytest.raises(KeyboardInterrupt):
        animate_queue(table(folder, *THREE), output=videos, config=AnimateConfig(weights=folder))
    assert (videos / "a.mp4").is_file()
    assert set(json.loads((videos / RECORD).read_text())) == {"a.mp4", "b.mp4"}


def test_what_ends_first_is_kept_first(folder: Path, animated: list[str]) -> None:
    """Workers give their outcomes in any order; the table keeps that of its rows."""
    jobs = jobs_of(folder, *THREE)
    (folder / "videos").mkdir()

    def backwards(waiting: Sequence[Job]) -> Iterator[Outcome]:
        return in_turn(waiting[::-1])

    report = run_queue(jobs, folder / "videos" / RECORD, backwards)
    assert animated == ["c.mp4", "b.mp4", "a.mp4"]
    assert [outcome.job for outcome in report.outcomes] == list(jobs)


def test_a_defect_is_a_failure_of_its_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("here\nand there")

    monkeypatch.setattr(queue_jobs, "animate", broken)
    outcome = run_job(jobs_of(folder, THREE[0])[0])
    assert (outcome.state, outcome.exit_code) == (State.FAILED, 70)
    assert outcome.sentences[0].startswith("unexpected error (ZeroDivisionError: here); run")


def test_what_would_fail_every_job_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, animated: list[str]
) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(folder / "home"))
    path = table(folder, *THREE)
    with pytest.raises(WeightsError, match="omokage weights pull hallo3"):
        animate_queue(path, output=folder / "videos")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="gives every job to one device; start it without torchrun"):
        animate_queue(path, output=folder / "videos")
    assert animated == [] and not (folder / "videos").exists()


# Ray


def test_without_ray_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'omokage\[queue\]', or leave --ray out"):
        animate_queue(
            table(folder, *THREE), output=folder / "videos", config=AnimateConfig(weights=folder), ray="local"
        )


def test_a_cluster_that_does_not_answer_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no answer\nfrom there")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(
        InputError, match=r"no Ray cluster answers at '10\.0\.0\.1:6379' .no answer.; start one"
    ):
        list(run_with_ray(jobs_of(folder, *THREE), run_job, "10.0.0.1:6379", on_card=False))


def test_jobs_spread_over_machines_and_outlive_one(folder: Path) -> None:
    """Two nodes of a cluster share the jobs; when one is lost in the middle, the other does its job again."""
    pytest.importorskip("ray", reason="needs 'pip install omokage[queue]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2))}

    def working(marks: Path) -> Callable[[Job], Outcome]:
        def run(job: Job) -> Outcome:
            import os  # a worker gets no names of this file
            import time

            import ray

            from omokage.pipelines.queue_jobs import Outcome, State

            node, name = ray.get_runtime_context().get_node_id(), job.portrait.stem
            (marks / f"{name}-{os.getpid()}.started").write_text(node)
            deadline = time.monotonic() + 100
            wanted = 2 if name == "ben" else 1  # the first that does ben's job never ends by itself
            while len(list(marks.glob("ben-*"))) < wanted and time.monotonic() < deadline:
                time.sleep(0.02)
            return Outcome(job, State.DONE, 1.0, (node,))

        return run

    jobs, marks = jobs_of(folder, *THREE), folder / "marks"
    marks.mkdir()
    try:
        outcomes, lost = [], ""
        for outcome in run_with_ray(jobs, working(marks), cluster.address, on_card=False):
            outcomes.append(outcome)
            if not lost and list(marks.glob("ben-*")):
                mark = next(marks.glob("ben-*"))
                lost = mark.read_text()
                cluster.remove_node(nodes[lost], allow_graceful=False)
                os.kill(int(mark.stem.split("-")[1]), signal.SIGKILL)  # a machine takes its workers with it
    finally:
        cluster.shutdown()
    assert [outcome.state for outcome in outcomes] == [State.DONE] * 3
    by_name = {outcome.job.portrait.stem: outcome.sentences[0] for outcome in outcomes}
    assert lost in nodes and by_name["ben"] != lost
    assert len(list(marks.glob("ben-*"))) == 2


def test_jobs_run_on_workers(folder: Path) -> None:
    """A job that fails and a worker that dies stop no other job."""
    pytest.importorskip("ray", reason="needs 'pip install omokage[queue]'")

    def working() -> Callable[[Job], Outcome]:
        # Within a function, so that workers get the code instead of looking for this file.
        def run(job: Job) -> Outcome:
            import os

            from omokage.pipelines.queue_jobs import Outcome, State

            if job.portrait.name == "ben.png":
                os._exit(1)
            return Outcome(job, State.DONE, 1.0, (str(os.getpid()),))

        return run

    jobs = jobs_of(folder, *THREE)
    (folder / "videos").mkdir()
    report: QueueReport = run_queue(
        jobs,
        folder / "videos" / RECORD,
        lambda waiting: run_with_ray(waiting, working(), "local", on_card=True),
    )
    assert [outcome.state for outcome in report.outcomes] == [State.DONE, State.FAILED, State.DONE]
    assert "its worker was lost" in report.outcomes[1].sentences[0]
    assert str(os.getpid()) not in report.outcomes[0].sentences
