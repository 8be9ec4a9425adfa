"""`omokage weights`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from omokage.cli.options import FilePath, json_option, quiet_option
from omokage.cli.progress import ProgressBar


@click.group()
def weights() -> None:
    """Models that omokage can use but does not bring.

    Only `pull` ever uses the network. They lie in the folder OMOKAGE_HOME, or where the system keeps a user's data.
    """


@weights.command(name="list")
@click.option("--verify", is_flag=True, help="Read every file and compare it with its checksum.")
@json_option
@quiet_option
def list_weights(verify: bool, as_json: bool, quiet: bool) -> int:
    """Every model: size, licence, and whether it is installed.

    The exit status is 2 when one of them is damaged.
    """
    from omokage.weights.report import table
    from omokage.weights.store import Condition, inspect_all

    with ProgressBar(is_quiet=quiet) as on_progress:
        states = inspect_all(full=verify, progress=on_progress)
    click.echo(json.dumps([state.to_json() for state in states], indent=2) if as_json else table(states))
    return 2 if any(state.condition is Condition.DAMAGED for state in states) else 0


@weights.command(name="add")
@click.argument("name")
@click.argument("folder", type=FilePath)
@quiet_option
def add_model(name: str, folder: Path, quiet: bool) -> None:
    """Install the model NAME from official files in FOLDER.

    They are converted, checked and noted; FOLDER is only read. A stopped run goes on with the same command.
    """
    from omokage.pipelines.weights import add_weights

    with ProgressBar(is_quiet=quiet) as on_progress:
        place = add_weights(name, folder, progress=on_progress)
    click.echo(f"installed: {place}")


@weights.command(name="pull")
@click.argument("name")
@click.option(
    "--from", "address", help="Address of the folder with the files (default: OMOKAGE_WEIGHTS_URL)."
)
@click.option(
    "--accept-licence", is_flag=True, help="You accept the licences that this command names without it."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="Seconds to wait for a silent server.",
)
@quiet_option
def pull_model(name: str, address: str | None, accept_licence: bool, timeout: float, quiet: bool) -> None:
    """Bring the model NAME over the network and install it.

    Says size and licences first. A stopped download goes on with the same command.
    """
    from omokage.pipelines.pull import PullConfig, pull_weights
    from omokage.weights.fetch import FetchConfig

    config = PullConfig(address, accept_licence, FetchConfig(timeout_s=timeout))
    with ProgressBar(is_quiet=quiet) as on_progress:
        place = pull_weights(name, config, progress=on_progress)
    click.echo(f"installed: {place}")


@weights.command(name="remove")
@click.argument("name")
def remove_model(name: str) -> None:
    """Delete the installed model NAME."""
    from omokage.weights.registry import size_text
    from omokage.weights.store import remove

    click.echo(f"removed: {name}, {size_text(remove(name))}")
