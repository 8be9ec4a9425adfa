"""`omokage create`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from omokage.cli.consent import ask_unless_recorded
from omokage.cli.options import (
    FilePath,
    is_first_process,
    label_option,
    output_option,
    quiet_option,
    refuse_same_file,
    size_option,
)
from omokage.cli.progress import ProgressBar


@click.command()
@click.argument("video", type=FilePath)
@output_option("The avatar file to write, such as me.avatar.")
@click.option(
    "--preset",
    type=click.Choice(["compact", "paper"]),
    default="compact",
    show_default=True,
    help="Made for a processor, or the paper's networks at 1024 pixels, which need a graphics card.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Training time at most; a short recording needs less.",
)
@size_option
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random choice.")
@click.option(
    "--force",
    is_flag=True,
    help="Train even when `omokage check` refuses the recording, or the plan the machine.",
)
@click.option(
    "--evaluate/--no-evaluate", default=True, show_default=True, help="Measure the result at the end."
)
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Go on where a stopped run ended."
)
@click.option(
    "--speech/--no-speech",
    default=True,
    show_default=True,
    help="Also learn how the person speaks, from the recording's sound.",
)
@label_option
@click.option("--batch", type=click.IntRange(min=1), help="Of the paper's networks: samples of a step (4).")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16"]),
    help="Of the paper's networks: how exactly they compute (tf32).",
)
@click.option("--compile", "compiled", is_flag=True, help="Of the paper's networks: compile them first.")
@click.option("--start", type=FilePath, help="Of the paper's networks: an avatar to begin with.")
@click.option(
    "--perceptual", type=FilePath, help="Of the paper's networks: VGG19's weights, for a further loss."
)
@click.option(
    "--keep-training", is_flag=True, help="Of the paper's networks: keep what others can start from."
)
@quiet_option
def create(
    video: Path,
    output: Path,
    preset: str,
    minutes: float,
    size: int,
    seed: int,
    force: bool,
    evaluate: bool,
    resume: bool,
    speech: bool,
    label: str | None,
    quiet: bool,
    **paper: Any,
) -> None:
    """Make an avatar from one recording.

    VIDEO shows one person in one take. It is checked, tracked, trained from and measured; a stopped run goes on
    when the same command is given again. The report on frames that were never trained on is put beside the avatar.

    With --preset paper, VIDEO may also be a dataset folder of the official preprocessing, or a folder of several
    recordings and such datasets, all of which are learned, for others to --start from. No command can drive an avatar
    whose first recording is a dataset folder: another program drew its face meshes. What it takes is said first, and
    refused where it would never end. `torchrun` shares it between cards. Pictures have 1024 pixels; --size is of the
    compact preset.
    """
    refuse_same_file(output, video)
    shared = {"force": force, "evaluate": evaluate, "resume": resume, "label": label}
    if preset == "paper":
        if click.get_current_context().get_parameter_source("size") is not ParameterSource.DEFAULT:
            raise click.UsageError(
                "--size is an option of the compact preset; the paper's networks draw 1024 pixels"
            )
        is_quiet = quiet or not is_first_process()
        _create_paper(
            video, output, {"minutes": minutes, "seed": seed}, {**shared, **paper}, is_quiet=is_quiet
        )
        return
    asked = [name for name, value in paper.items() if value]
    if asked:
        name = "compile" if asked[0] == "compiled" else asked[0].replace("_", "-")
        raise click.UsageError(f"--{name} is an option of the paper's networks; add --preset paper")
    from omokage.pipelines.create import CreateConfig, create_avatar

    ask_unless_recorded(video)
    config = CreateConfig(minutes=minutes, size=size, seed=seed, speech=speech, **shared)  # type: ignore[arg-type]
    with ProgressBar(is_quiet=quiet) as on_progress:
        create_avatar(video, output=output, config=config, on_progress=on_progress)
    click.echo(f"avatar: {output}")
    if evaluate:
        click.echo(f"report: {output.with_name(f'{output.stem}-report') / 'report.html'}")


def _create_paper(
    video: Path, output: Path, training: dict[str, Any], options: dict[str, Any], *, is_quiet: bool
) -> None:
    from omokage.avatar.paper.run import PaperTrainingConfig
    from omokage.pipelines.create_paper import PaperCreateConfig, create_paper_avatar

    batch = options.pop("batch")
    if batch is not None:
        training |= {"batch": batch, "micro_batch": next(n for n in (4, 3, 2, 1) if batch % n == 0)}
    if (precision := options.pop("precision")) is not None:
        training["precision"] = precision
    config = PaperCreateConfig(
        training=PaperTrainingConfig(compiled=options.pop("compiled"), **training), **options
    )
    with ProgressBar(is_quiet=is_quiet) as on_progress:
        avatar = create_paper_avatar(video, output=output, config=config, on_progress=on_progress)
    if is_first_process():
        click.echo(f"avatar: {output}\n{avatar.to_text()}")
