"""`omokage speak` and `omokage voices`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omokage.cli.consent import ask_unless_recorded
from omokage.cli.options import FilePath, drawing_options, output_option, quiet_option, refuse_same_file
from omokage.cli.progress import ProgressBar
from omokage.cli.speak_live import STREAM, speak_live
from omokage.errors import InputError, OutputError
from omokage.files import read_given_text


@click.command()
@click.argument("avatar", type=FilePath)
@output_option(
    "The video to write: .mp4, or .webm for a transparent background; with --live also -, a stream to stdout."
)
@click.option(
    "--audio",
    type=FilePath,
    help="A recording of what is said, in any language; with --live also -, a stream from stdin.",
)
@click.option("--text", help="What is said, read aloud by --voice; @FILE takes it from a text file.")
@click.option("--voice", default="en-us", show_default=True, help="Who reads; see `omokage voices`.")
@click.option(
    "--driver",
    type=click.Choice(["auto", "general", "personal"]),
    default="auto",
    show_default=True,
    help="Whose way of moving the mouth: everybody's, this person's, or the better one.",
)
@click.option(
    "--mood", type=click.Choice(["neutral", "friendly", "serious"]), default="neutral", show_default=True
)
@click.option(
    "--energy", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="How far the mouth opens."
)
@click.option(
    "--head", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="Amount of head movement."
)
@click.option(
    "--blinks",
    "blinks_per_minute",
    type=click.FloatRange(0, 60),
    default=14.0,
    show_default=True,
    help="Blinks a minute.",
)
@click.option(
    "--gaze",
    type=click.Choice(["free", "camera"]),
    default="free",
    show_default=True,
    help="Glance away at times, or always look into the camera.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Another number is another take."
)
@click.option(
    "--curves", type=FilePath, help="Draw these curves (a .csv of the 52 named expressions), not the voice's."
)
@click.option("--write-curves", "curves_output", type=FilePath, help="Also write the curves that were drawn.")
@click.option("--cues", type=FilePath, help="A JSON list of what changes at which second.")
@click.option("--live", "is_live", is_flag=True, help="Say it while it is heard; Ctrl-C ends it.")
@click.option(
    "--rate",
    type=click.IntRange(4000, 192_000),
    default=16_000,
    show_default=True,
    help="Samples a second of a stream without a WAV header (16-bit).",
)
@click.option(
    "--channels",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Channels of a stream without a WAV header.",
)
@click.option(
    "--microphone",
    "is_microphone",
    is_flag=True,
    help="The stream never waits: what cannot be said in time is left out.",
)
@drawing_options
@quiet_option
def speak(
    avatar: Path,
    output: Path,
    audio: Path | None,
    text: str | None,
    voice: str,
    curves: Path | None,
    curves_output: Path | None,
    cues: Path | None,
    is_live: bool,
    rate: int,
    channels: int,
    is_microphone: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Let AVATAR say a recording or a text.

    The mouth follows the voice, in any language; head, eyes and breath live with it. No weights are needed. Where the
    recording had sound, the mouth moves as this person's does.

    With --live the voice comes as it is said, from stdin or a file, and leaves 0.3 seconds later with the picture; the
    mouth then moves in the general way:

      espeak-ng --stdout "Hello." | omokage speak me.avatar --audio - --live -o - | ffplay -
    """
    if is_live:
        if audio is None or text is not None or curves is not None or curves_output is not None:
            raise InputError(
                "--live follows a voice while it is heard; give --audio - or --audio FILE, and no text and no curves"
            )
        return speak_live(
            avatar, audio, output, cues, how, sound=(rate, channels), is_microphone=is_microphone, quiet=quiet
        )
    if STREAM in (str(audio), str(output)):
        raise InputError(f"{STREAM} stands for a stream, and without --live files are needed; add --live")
    script = Path(text[1:]) if text is not None and text.startswith("@") else None
    given = [path for path in (avatar, audio, curves, cues, script) if path is not None]
    refuse_same_file(output, *given)
    if curves_output is not None:
        refuse_same_file(curves_output, *given)
        if curves_output.resolve() == output.resolve():
            raise OutputError("the curves and the video have the same name; give --write-curves another one")
    from omokage.pipelines.speak import SpeakConfig
    from omokage.pipelines.speak import speak as speak_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        result = speak_pipeline(
            avatar,
            output=output,
            audio=audio,
            text=text if script is None else _text_of(script),
            voice=voice,
            curves=curves,
            curves_output=curves_output,
            cues=cues,
            config=SpeakConfig(**how),
            on_progress=on_progress,
        )
    for sentence in result.warnings:
        click.echo(f"note: {sentence}", err=True)
    click.echo(f"video: {output}")
    return None


@click.command("learn-speech")
@click.argument("avatar", type=FilePath)
@click.argument("recording", type=FilePath)
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Go on where a stopped run ended."
)
@quiet_option
def learn_speech(avatar: Path, recording: Path, resume: bool, quiet: bool) -> None:
    """Teach AVATAR how its person speaks.

    RECORDING shows the person speaking, with sound; half a minute is enough. `create` does this by itself with the
    recording of the avatar. What was learned is put into AVATAR, which stays as it is otherwise.
    """
    refuse_same_file(avatar, recording)
    ask_unless_recorded(recording)
    from omokage.pipelines.learn_speech import LearnSpeechConfig
    from omokage.pipelines.learn_speech import learn_speech as learn_speech_pipeline

    config = LearnSpeechConfig(resume=resume)
    with ProgressBar(is_quiet=quiet) as on_progress:
        learned = learn_speech_pipeline(avatar, recording, config=config, on_progress=on_progress)
    for sentence in learned.sentences:
        click.echo(sentence)
    click.echo(f"avatar: {avatar}")


@click.command()
def voices() -> None:
    """The voices that can read a text aloud on this machine."""
    from omokage.pipelines.speak import voices_report

    click.echo(voices_report())


def _text_of(path: Path) -> str:
    try:
        return read_given_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); give a plain text file") from error
