"""`omokage export`, and `omokage import avatar`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from omokage.cli.options import FilePath, output_option, refuse_same_file
from omokage.errors import InputError

passphrase_option = click.option(
    "--passphrase-file",
    type=FilePath,
    help="Take the passphrase from the first line of this file instead of asking.",
)


@click.command(name="export")
@click.argument("avatar", type=FilePath)
@output_option("The file to write, such as carried.avatar.")
@click.option("--plain", is_flag=True, help="Without any encryption: whoever has the file has the avatar.")
@passphrase_option
def export_avatar(avatar: Path, output: Path, plain: bool, passphrase_file: Path | None) -> None:
    """Write AVATAR so that it opens on another machine.

    Avatar files are encrypted with a key that stays on this machine. An export is encrypted under a passphrase instead;
    'omokage import avatar' takes it in over there. It stands in the audit log.
    """
    refuse_same_file(output, avatar)
    if plain and passphrase_file is not None:
        raise InputError("a plain file has no passphrase; leave --plain or --passphrase-file out")
    passphrase = None if plain else _passphrase(passphrase_file, is_new=True)
    from omokage.pipelines.carry import export_avatar as export_pipeline

    export_pipeline(avatar, output=output, passphrase=passphrase)
    how = (
        "not encrypted: keep it where only those may read who may show the person"
        if plain
        else "under the passphrase"
    )
    click.echo(f"avatar: {output} ({how})")


@click.command(name="avatar")
@click.argument("source", type=FilePath)
@output_option("The avatar file to write, such as me.avatar.")
@passphrase_option
def import_avatar(source: Path, output: Path, passphrase_file: Path | None) -> None:
    """Take in SOURCE, an avatar that 'omokage export' wrote, or a plain one of an earlier omokage.

    What is written is encrypted with a key that stays on this machine.
    """
    refuse_same_file(output, source)
    from omokage.pipelines.carry import import_avatar as import_pipeline
    from omokage.pipelines.carry import needs_passphrase

    passphrase = _passphrase(passphrase_file, is_new=False) if needs_passphrase(source) else None
    import_pipeline(source, output=output, passphrase=passphrase)
    click.echo(f"avatar: {output}")


def _passphrase(file: Path | None, *, is_new: bool) -> str:
    if file is not None:
        from omokage.files import read_given_text

        try:
            return (read_given_text(file, most_bytes=10_000).splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as a text; give a file with the passphrase") from error
    if not sys.stdin.isatty():
        raise InputError("give the passphrase with --passphrase-file, since there is no terminal to ask at")
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new))
