"""`omokage verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from omokage.cli.options import FilePath, json_option, quiet_option
from omokage.cli.progress import ProgressBar


@click.command()
@click.argument("path", metavar="FILE_OR_FOLDER", type=FilePath)
@click.option(
    "--key",
    "keys",
    type=FilePath,
    multiple=True,
    help="The key file of another or an earlier installation, to look for its renders too; may be repeated.",
)
@json_option
@quiet_option
def verify(path: Path, keys: tuple[Path, ...], as_json: bool, quiet: bool) -> int:
    """Where pictures, videos and sounds come from: omokage's marks, the signed origin, the consent as it stands now.

    Of an avatar file, which carries no mark: how it is encrypted and how the consent stands.

    Marks are found in copies that were encoded again, cropped, resized or mirrored, too. Nothing is sent anywhere. No
    mark found does not mean that a picture or sound is real.

    The exit status is 0 when every file has a mark, 1 when one has none (as avatar files) or was changed after it was
    signed, 2 when one cannot be read.
    """
    from omokage.pipelines.verify import verify as verify_pipeline

    with ProgressBar(is_quiet=quiet) as on_progress:
        report = verify_pipeline(path, keys=keys, on_progress=on_progress)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())
    return report.exit_code
