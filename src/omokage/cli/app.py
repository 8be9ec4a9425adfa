"""The command line: parse, call one pipeline, say what was made. Errors become one sentence and an exit code."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from omokage import InputError, MissingDependencyError, OmokageError, OutputError, __version__
from omokage.cli.animate import animate, animate_queue
from omokage.cli.audit import audit
from omokage.cli.consent import ask_unless_recorded, consent
from omokage.cli.create import create
from omokage.cli.export import export_avatar
from omokage.cli.identity import identity_group
from omokage.cli.imports import imports
from omokage.cli.options import (
    FilePath,
    drawing_options,
    is_first_process,
    json_option,
    output_option,
    quiet_option,
    refuse_same_file,
    size_option,
)
from omokage.cli.progress import ProgressBar
from omokage.cli.speak import learn_speech, speak, voices
from omokage.cli.train_portrait import train_portrait
from omokage.cli.verify import verify
from omokage.cli.weights import weights

INTERRUPTED = 130  # what a shell reports after Ctrl-C
TERMINATED = 143
STOPPED = "stopped, and nothing half-written was left; run the same command to start again"
STOPPED_CREATE = "stopped, and nothing half-written was left; the same command goes on from what was done"
RESUMABLE = ("animate", "animate-queue", "create", "demo", "learn-speech", "train-portrait", "weights")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, message="omokage %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback when something goes wrong, and log more.")
@click.pass_context
def app(context: click.Context, debug: bool) -> None:
    """One ordinary recording of a person becomes an avatar that repeats anybody's movement.

    Everything runs on this machine; nothing is sent anywhere. Start with `omokage demo`.
    """
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@app.command()
@click.argument("recording", type=FilePath)
@output_option("Folder for the contact sheet and the report as text and JSON.", is_required=False)
@json_option
@quiet_option
def check(recording: Path, output: Path | None, as_json: bool, quiet: bool) -> int:
    """Is RECORDING good enough, and what to change.

    Looks at the face, light, sharpness, movement, cuts and sound, and says what to do about each finding.
    The exit status is 0 when the verdict is good or usable, 2 when it is refuse.
    """
    from omokage.pipelines.check import check as check_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        report = check_pipeline(recording, output=output, on_progress=on_progress)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())
    if output is not None and not as_json:
        click.echo(f"\ncontact sheet: {output / 'contact-sheet.png'}")
    return 2 if report.verdict == "refuse" else 0


@app.command()
@click.argument("avatar", type=FilePath)
@click.argument("driver", type=FilePath)
@output_option("The video to write: .mp4, or .webm for a transparent background.")
@click.option("--expression-strength", type=click.FloatRange(0, 2), default=1.0, show_default=True)
@click.option("--pose-strength", type=click.FloatRange(0, 2), default=1.0, show_default=True)
@click.option(
    "--mouth-only", is_flag=True, help="Move the mouth and jaw; head, eyes and shoulders stay at rest."
)
@click.option(
    "--gaze",
    type=click.Choice(["driver", "camera"]),
    default="driver",
    show_default=True,
    help="Follow the driver's eyes, or look into the camera.",
)
@click.option(
    "--blink",
    type=click.FloatRange(0, 2),
    default=1.0,
    show_default=True,
    help="Strength of blinks; 0 for none.",
)
@drawing_options
@quiet_option
def reenact(avatar: Path, driver: Path, output: Path, quiet: bool, **controls: Any) -> None:
    """Let AVATAR repeat the movement of DRIVER.

    DRIVER is a video, a saved face track (.track) or the blendshape table of a phone capture app (.csv).
    """
    refuse_same_file(output, avatar, driver)
    from omokage.pipelines.reenact import ReenactConfig
    from omokage.pipelines.reenact import reenact as reenact_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        result = reenact_pipeline(
            avatar, driver, output=output, config=ReenactConfig(**controls), on_progress=on_progress
        )
    for sentence in result.warnings:
        click.echo(f"note: {sentence}", err=True)
    click.echo(f"video: {output}")


@app.command()
@click.argument("avatar", type=FilePath)
@click.option("--recording", type=FilePath, help="The recording it was made from; needed when it was moved.")
@click.option("--speech", type=FilePath, help="What is said, when AVATAR is a video that `animate` made.")
@click.option("--window-frames", type=click.IntRange(min=3), help="Of such a video (default: 49).")
@output_option("Folder for the report (default: <avatar>-report beside it).", is_required=False)
@json_option
@quiet_option
def evaluate(
    avatar: Path,
    recording: Path | None,
    speech: Path | None,
    window_frames: int | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure AVATAR on held-out frames.

    The report has numbers, pictures and plots of the part of the recording that was never trained on. It takes a
    little longer than the training did, since a plain network is trained as long for comparison.

    With --speech, AVATAR is a video that `omokage animate` made: do the lips follow the speech, does the picture stay
    as it began? --recording is then the true video of the same speech, if there is one.
    """
    folder = output or avatar.with_name(f"{avatar.stem}-report")
    with ProgressBar(is_quiet=quiet) as on_progress:
        if speech is not None:
            from omokage.pipelines.evaluate_video import evaluate_video

            result: Any = evaluate_video(
                avatar,
                speech,
                output=folder,
                recording=recording,
                window_frames=window_frames,
                on_progress=on_progress,
            )
        else:
            from omokage.pipelines.evaluate import evaluate_avatar

            result = evaluate_avatar(avatar, recording=recording, output=folder, on_progress=on_progress)
    click.echo(
        json.dumps(result.to_json(), indent=2)
        if as_json
        else f"{result.to_text()}\nreport: {folder / 'report.html'}"
    )


@app.command()
@click.argument("photo", type=FilePath)
@output_option("The video to write, such as clip.mp4.")
@click.option(
    "--seconds", type=click.FloatRange(5, 300), default=30.0, show_default=True, help="Length of the clip."
)
@quiet_option
def rehearse(photo: Path, output: Path, seconds: float, quiet: bool) -> None:
    """Animate one PHOTO into a short clip.

    The clip is enough for `omokage create`; such an avatar has only ever seen one picture.
    """
    refuse_same_file(output, photo)
    from omokage.pipelines.rehearse import rehearse as rehearse_pipeline

    ask_unless_recorded(photo)
    with ProgressBar(is_quiet=quiet) as on_progress:
        rehearse_pipeline(photo, output=output, seconds=seconds, on_progress=on_progress)
    click.echo(f"video: {output}")


@app.command()
@size_option
@json_option
@quiet_option
def bench(size: int, as_json: bool, quiet: bool) -> None:
    """Measure what this machine can do.

    Frames a second, latency, minutes of training and memory.
    """
    from omokage.pipelines.bench import bench as bench_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        report = bench_pipeline(size=size, on_progress=on_progress)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())


@app.command()
@click.option(
    "-o", "--output", type=FilePath, default="demo-output", show_default=True, help="Folder for the results."
)
@click.option(
    "--minutes", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Training time."
)
@quiet_option
def demo(output: Path, minutes: float, quiet: bool) -> None:
    """Do all of it with the sample portrait.

    Rehearse, create, reenact and evaluate, then the list of files to open.
    """
    from omokage.pipelines.demo import demo as demo_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        result = demo_pipeline(output, minutes=minutes, on_progress=on_progress)
    click.echo("Open these files:")
    for file in result.files:
        click.echo(f"  {file}")


@app.command()
def labels() -> None:
    """The label profiles: what `--label eu`, `cn`, `jp`, `us` and `sample` write, where, and after which rules."""
    from omokage.trust.label import labels_report

    click.echo(labels_report())


@app.command()
@click.argument("command", required=False)
@click.option("--bill", type=FilePath, help="Also write a software bill of materials (CycloneDX, .json).")
@json_option
def licences(command: str | None, bill: Path | None, as_json: bool) -> None:
    """The licence of every package and model, of all of omokage or of what one COMMAND makes, such as speak."""
    from omokage.pipelines.licences import licences as licences_pipeline
    from omokage.pipelines.licences import write_bill

    found = licences_pipeline(command)
    if bill is not None:
        write_bill(found, bill)
    click.echo(
        json.dumps([asdict(one) for one in found.components], indent=2) if as_json else found.to_text()
    )


app.add_command(animate)
app.add_command(animate_queue)
app.add_command(audit)
app.add_command(consent)
app.add_command(create)
app.add_command(export_avatar)
app.add_command(identity_group)
app.add_command(imports)
app.add_command(learn_speech)
app.add_command(speak)
app.add_command(train_portrait)
app.add_command(verify)
app.add_command(voices)
app.add_command(weights)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Prints at most one sentence about what went wrong."""
    try:
        status = app.main(list(arguments), prog_name="omokage", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.Abort:  # what click makes of KeyboardInterrupt
        command = next((word for word in arguments if word in app.commands), "")
        return complain(STOPPED_CREATE if command in RESUMABLE else STOPPED, INTERRUPTED)
    except Exception as error:
        if "--debug" in arguments:
            logging.getLogger("omokage").exception("the traceback, because of --debug")
        if not is_first_process() and isinstance(error, (InputError, OutputError, MissingDependencyError)):
            return error.exit_code  # the first process met the same, and says it
        return complain(*describe(error))


def describe(error: Exception) -> tuple[str, int]:
    """One sentence for people and the exit code for scripts."""
    match error:
        case OmokageError():
            return str(error), error.exit_code
        case click.ClickException():
            context = getattr(error, "ctx", None)
            hint = f" (see '{context.command_path} --help')" if context else ""
            return error.format_message().rstrip(".") + hint, error.exit_code
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full; make room and run the same command again", OutputError.exit_code
        case OSError() if error.filename:
            return f"cannot use {error.filename}: {error.strerror}", OutputError.exit_code
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "this machine ran out of memory; close other programs or choose a smaller --size", 71
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"unexpected error ({cause}); run again as 'omokage --debug ...' and report what it shows", 70


def complain(sentence: str, exit_code: int) -> int:
    click.echo(f"omokage: {sentence}", err=True)
    return exit_code


def silence_native_code() -> None:
    """Send what C++ libraries write to the error stream into the void; our own words keep their way to it."""
    sys.stderr = os.fdopen(
        os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace"
    )
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 2)
    os.close(void)


def main() -> NoReturn:
    """The `omokage` command."""
    # A stop by the system runs the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    if "--debug" not in sys.argv:
        silence_native_code()
    sys.exit(run(sys.argv[1:]))
