"""`omokage speak --live`: stdin and stdout, and the first Ctrl-C, which ends what is said."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omokage.cli.options import refuse_same_file
from omokage.cli.progress import ProgressBar
from omokage.errors import InputError, OutputError

if TYPE_CHECKING:
    from omokage.pipelines.live_speaker import LiveSpeaker

STREAM = "-"
STOPS = (signal.SIGINT, signal.SIGTERM)


def speak_live(
    avatar: Path,
    audio: Path,
    output: Path,
    cues: Path | None,
    how: Mapping[str, Any],
    *,
    sound: tuple[int, int],
    is_microphone: bool,
    quiet: bool,
) -> None:
    """Say a stream or a file as it comes. sound: rate and channels of a stream that does not tell them."""
    is_read, is_written = str(audio) == STREAM, str(output) == STREAM
    if is_read and sys.stdin.isatty():
        raise InputError("--audio - reads a sound from stdin, which is a terminal; pipe one into the command")
    if is_written and sys.stdout.isatty():
        raise OutputError(
            "-o - writes a video to stdout, which is a terminal; pipe it on, such as '| ffplay -'"
        )
    if not is_written:
        refuse_same_file(output, *(path for path in (avatar, audio, cues) if path is not None))
    from omokage.media.clip import SoundFormat
    from omokage.pipelines.speak import SpeakConfig
    from omokage.pipelines.speak_live import speak_live as speak_live_pipeline

    speakers: list[LiveSpeaker] = []

    def on_ready(speaker: LiveSpeaker) -> None:
        speakers.append(speaker)
        if not quiet:
            click.echo("live: ready; Ctrl-C ends it", err=True)

    with ProgressBar(is_quiet=quiet) as on_progress, _ended_by_signals(speakers):
        try:
            result = speak_live_pipeline(
                avatar,
                source=_read if is_read else audio,
                output=_write if is_written else output,
                raw=SoundFormat(*sound),
                is_microphone=is_microphone,
                cues=cues,
                config=SpeakConfig(**how),
                on_ready=on_ready,
                on_progress=on_progress,
            )
        except BrokenPipeError:
            return  # whoever watched has seen enough
    for sentence in result.notes:
        click.echo(f"note: {sentence}", err=True)
    click.echo(f"video: {output}" if not is_written else "video: to stdout", err=is_written)


@contextmanager
def _ended_by_signals(speakers: list[LiveSpeaker]) -> Iterator[None]:
    """The first Ctrl-C ends what is said, and the video with it; the next one, or one before, stops at once."""
    usual = {number: signal.getsignal(number) for number in STOPS}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        restore()
        if speakers:
            speakers[0].interrupt()
            speakers[0].end()
        else:
            signal.raise_signal(number)

    for number in STOPS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def _read(count: int) -> bytes:
    """What has come, past the buffer of `sys.stdin`, whose lock would outlive the program."""
    return os.read(sys.stdin.fileno(), count)


def _write(data: bytes) -> int:
    left = memoryview(data)
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]
    return len(data)
