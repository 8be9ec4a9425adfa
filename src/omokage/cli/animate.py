"""`omokage animate` and `omokage animate-queue`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omokage.cli.consent import ask_unless_recorded
from omokage.cli.options import (
    Command,
    FilePath,
    is_first_process,
    label_option,
    output_option,
    purpose_option,
    quiet_option,
    refuse_same_file,
)
from omokage.cli.progress import ProgressBar

PROFILES = ("auto", "resident", "resident-lean", "grouped", "layerwise", "grouped-8bit")


# What one animation and a queue of them have in common.
_CHOICES = (
    click.option(
        "--prompt",
        default="a person talks to the camera",
        show_default=True,
        help="What the video shows, in English.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of every random choice.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(2, 1000),
        default=50,
        show_default=True,
        help="Denoising steps of a window; fewer are faster and coarser.",
    ),
    click.option(
        "--guidance",
        type=click.FloatRange(1, 20),
        default=3.5,
        show_default=True,
        help="How strongly voice and prompt are followed; 1 takes half the time.",
    ),
    click.option(
        "--guidance-interval",
        type=(click.FloatRange(0, 1), click.FloatRange(0, 1)),
        default=(0.0, 1.0),
        metavar="FROM TO",
        help="Shares of the steps between which guidance works, such as 0.2 0.8; all others take half the time.",
    ),
    click.option(
        "--reuse",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        metavar="CHANGE",
        help="Steps that change by less than this share, such as 0.1, reuse the work of the one before; coarser.",
    ),
    click.option("--any-face", is_flag=True, help="Take painted faces, and pictures that would be refused."),
    click.option(
        "--separator",
        metavar="NAME",
        help="Take music and noise away from what the lips follow, by a separator that another package brings.",
    ),
    label_option,
    purpose_option,
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="What computes.",
    ),
    click.option(
        "--memory",
        type=click.Choice(PROFILES),
        default="auto",
        show_default=True,
        help="Memory profile: where weights wait; all but the one of 8 bits give the same video.",
    ),
    click.option(
        "--compile",
        is_flag=True,
        help="Compile the layers for this machine first; minutes, that long videos win back.",
    ),
    click.option(
        "--weights",
        type=FilePath,
        help="Folder of a model, such as a trained one (default: the installed one).",
    ),
    click.option(
        "--lora",
        type=FilePath,
        help="A file of `omokage train-portrait --lora` that is added to the weights.",
    ),
    click.option(
        "--resume/--no-resume", default=True, show_default=True, help="Go on where a stopped run ended."
    ),
)


def animation_choices(command: Command) -> Command:
    """Add the options of an animation, in their order."""
    for option in reversed(_CHOICES):
        command = option(command)
    return command


@click.command()
@click.argument("portrait", type=FilePath)
@click.argument("speech", type=FilePath)
@output_option("The video to write, such as out.mp4.", is_required=False)
@animation_choices
@click.option(
    "--plan", "is_plan", is_flag=True, help="Say what it would cost on this machine, and do nothing."
)
@quiet_option
def animate(
    portrait: Path,
    speech: Path,
    output: Path | None,
    is_plan: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Let the person in the picture PORTRAIT say what is heard in SPEECH.

    SPEECH is a sound file, or a video whose sound is taken; it becomes the video's sound. Hallo3's weights are needed
    (`omokage weights list`), and a graphics card: ask with --plan first. A stopped run goes on when the same command is
    given again. `torchrun --no-python --nproc-per-node N omokage animate ...` shares the work between N cards.
    """
    if output is None and not is_plan:
        raise click.UsageError("Missing option '-o' / '--output'.", click.get_current_context())
    if output is not None:
        refuse_same_file(output, portrait, speech)
    from omokage.pipelines.animate import AnimateConfig
    from omokage.pipelines.animate import animate as animate_pipeline
    from omokage.pipelines.animate import plan as plan_pipeline

    config = AnimateConfig(**choices)
    is_first = is_first_process()
    if is_plan or output is None:
        if is_first:
            click.echo(plan_pipeline(portrait, speech, config=config).to_text())
        return
    if is_first:
        ask_unless_recorded(portrait)
    with ProgressBar(is_quiet=quiet) as on_progress:
        result = animate_pipeline(portrait, speech, output=output, config=config, on_progress=on_progress)
    if not is_first:
        return
    for sentence in result.notes:
        click.echo(f"note: {sentence}", err=True)
    click.echo(f"video: {output}")


@click.command("animate-queue")
@click.argument("jobs", type=FilePath)
@output_option("Folder for the videos.")
@animation_choices
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Run on the machines of this Ray cluster, or 'local' for workers on this one.",
)
@quiet_option
def animate_queue(jobs: Path, output: Path, ray: str | None, quiet: bool, **choices: Any) -> int:
    """Animate every line of the table JOBS.

    JOBS is a CSV file whose first line names the columns: portrait, speech, output (the name of a video in the folder),
    and prompt and seed where these differ from the options. A job that fails stops no other; the same command again
    makes what is missing. The exit status is 0 when all videos are there, else that of the first failure.
    """
    from omokage.pipelines.animate import AnimateConfig
    from omokage.pipelines.animate_queue import animate_queue as queue_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        report = queue_pipeline(
            jobs, output=output, config=AnimateConfig(**choices), ray=ray, on_progress=on_progress
        )
    click.echo(report.to_text())
    return report.exit_code
