"""`omokage import`."""

from __future__ import annotations

from pathlib import Path

import click

from omokage.cli.export import import_avatar
from omokage.cli.options import FilePath, output_option, quiet_option, refuse_same_file
from omokage.cli.progress import ProgressBar


@click.group(name="import")
def imports() -> None:
    """Avatars from elsewhere: exported ones, plain ones, and such that were trained with other programs."""


imports.add_command(import_avatar)


@imports.command()
@click.argument("checkpoint", type=FilePath)
@output_option("The avatar file to write, such as person.avatar.")
@click.option(
    "--keep-training", is_flag=True, help="Keep also the networks that only further training needs."
)
@quiet_option
def styleavatar(checkpoint: Path, output: Path, keep_training: bool, quiet: bool) -> None:
    """Import CHECKPOINT, a .pt file of the official StyleAvatar.

    It is read without running anything in it, and every tensor is accounted for. The networks give the official
    pictures from Python; `reenact` and `evaluate` cannot use such an avatar.
    """
    refuse_same_file(output, checkpoint)
    from omokage.pipelines.import_styleavatar import ImportConfig, import_styleavatar

    with ProgressBar(is_quiet=quiet) as on_progress:
        result = import_styleavatar(
            checkpoint,
            output=output,
            config=ImportConfig(keep_training=keep_training),
            on_progress=on_progress,
        )
    click.echo(f"avatar: {output}\n{result.to_text()}")
