"""`omokage train-portrait`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omokage.cli.options import FilePath, is_first_process, output_option, quiet_option
from omokage.cli.progress import ProgressBar


@click.command("train-portrait")
@click.argument("videos", type=FilePath)
@output_option("Folder for the trained model, or for the LoRA file.")
@click.option(
    "--stage",
    type=click.Choice([1, 2]),
    default=1,
    show_default=True,
    help="1 learns identity, 2 speech, from the result of 1.",
)
@click.option(
    "--preset",
    type=click.Choice(["official", "tiny", "small"]),
    default="official",
    show_default=True,
    help="The published training; one to try out the way; or a small model of one person, from scratch.",
)
@click.option(
    "--weights",
    type=FilePath,
    help="Model to begin with: a folder, or hallo3 or cogvideox (default: the first that is installed).",
)
@click.option(
    "--lora",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=16,
    default=0,
    help="Train a small file of this rank (16) beside the weights, for one person or one accessory.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the optimiser (default: the preset's).")
@click.option("--minutes", type=click.FloatRange(min=0.01), help="Stop after this time at the latest.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples of a step (default: the preset's).")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every random choice."
)
@click.option("--shards", type=FilePath, help="Folder for the prepared data (default: VIDEOS.shards).")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="What computes.",
)
@quiet_option
def train_portrait(videos: Path, output: Path, quiet: bool, **choices: Any) -> None:
    """Train a talking model on VIDEOS, one stage at a time.

    VIDEOS is a folder of clips of one talking person each, with sound, and `captions.txt` if there are captions (a line
    a clip: file name, tab, text), or a single clip. What it takes is said first, and refused where it cannot be done.
    `torchrun` shares it between cards. A stopped training goes on when the same command is given again.

    With --preset small, VIDEOS is one clip of one person: everything is learned from it, on a processor, in --minutes
    (60), and measured on its end, which is not learned from.
    """
    if choices["preset"] == "small":
        _train_small(videos, output, choices["minutes"] or 60.0, choices["seed"], is_quiet=quiet)
        return
    from omokage.pipelines.train_portrait import TrainConfig
    from omokage.pipelines.train_portrait import train_portrait as train_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        trained = train_pipeline(
            videos, output=output, config=TrainConfig(**choices), on_progress=on_progress
        )
    if not is_first_process():
        return
    for record in trained.data.records:
        if record.skipped:
            click.echo(f"note: {record.name} was left out: {record.skipped}", err=True)
    for note in trained.notes:
        click.echo(f"note: {note}", err=True)
    option = "--lora" if trained.path.is_file() else "--weights"
    click.echo(f"model: {trained.path}\nuse it with: omokage animate {option} {trained.path} ...")


def _train_small(clip: Path, output: Path, minutes: float, seed: int, *, is_quiet: bool) -> None:
    from omokage.pipelines.small_portrait import PORTRAIT_FILE, small_portrait, train_small_portrait

    with ProgressBar(is_quiet=is_quiet) as on_progress:
        made = train_small_portrait(
            clip, output=output, config=small_portrait(minutes, seed), on_progress=on_progress
        )
    click.echo(made.evaluation.to_text())
    click.echo(f"note: {made.evaluation.caution}", err=True)
    click.echo(f"report: {output / 'report.html'}\nmodel: {output}")
    click.echo(f"use it with: omokage animate --weights {output} {output / PORTRAIT_FILE} ... --any-face")
