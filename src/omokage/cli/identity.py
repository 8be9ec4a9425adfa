"""`omokage identity`: under whose name omokage signs what it makes."""

from __future__ import annotations

from pathlib import Path

import click

from omokage.cli.options import FilePath, output_option
from omokage.errors import InputError


@click.group(name="identity")
def identity_group() -> None:
    """Under whose name this installation signs what it makes.

    The certificates lie in the folder OMOKAGE_HOME, or where the system keeps a user's data; private keys never
    leave it.
    """


@identity_group.command()
def show() -> None:
    """The name, until when it holds, and the fingerprint of the root that others trust."""
    from omokage.trust.identity import identity

    mine = identity()
    click.echo(
        f"{mine.organization}, until {mine.certificate.not_valid_after_utc.date()}\nroot {mine.fingerprint}"
    )


@identity_group.command()
@click.option("--organization", required=True, help="The name that readers of your files see.")
def new(organization: str) -> None:
    """Make the certificates under a name of your own, before anything was signed."""
    from omokage.home import data_home
    from omokage.trust.identity import identity

    folder = data_home() / "identity"
    if (folder / "signer.pem").exists():
        raise InputError(
            f"an identity is there already, in {folder}; move that folder away first, and keep it: files that it "
            "signed stay trusted with its root"
        )
    identity(organization=organization)
    show.callback()  # type: ignore[misc]


@identity_group.command()
@output_option("The root certificate, as .pem.")
def export(output: Path) -> None:
    """Write the root certificate, for others to trust; it holds no key."""
    from omokage.files import saving
    from omokage.trust.identity import identity

    with saving(output) as part:
        part.write_bytes(identity().root)
    click.echo(f"root: {output}")


@identity_group.command()
@click.argument("root", type=FilePath)
def trust(root: Path) -> None:
    """Believe what ROOT, the root certificate of somebody else, has signed."""
    from omokage.trust.identity import trust_root

    click.echo(f"trusted: {trust_root(root)}")
