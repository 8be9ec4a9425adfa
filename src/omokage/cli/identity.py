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
    """The name, until when it holds, the fingerprint of the root that others trust, and who stamps the time."""
    from omokage.trust.identity import identity

    mine = identity()
    click.echo(
        f"{mine.organization}, until {mine.certificate.not_valid_after_utc.date()}\nroot {mine.fingerprint}\n"
        f"time stamps: {_stamps()}"
    )


def _stamps() -> str:
    from omokage.trust.stamp_authority import chosen, stamp_authority

    authority = stamp_authority()
    if authority is None:
        is_missing = chosen() == "own"
        return "none" + (
            ", since the root's key is not here and no stamper.pem was put there" if is_missing else ""
        )
    return f"asked for at {authority}" if isinstance(authority, str) else "by this installation"


@identity_group.command()
@click.option("--organization", required=True, help="The name that readers of your files see.")
def new(organization: str) -> None:
    """Make the certificates under a name of your own, before anything was signed."""
    from omokage.trust.identity import identity

    _refuse_second_identity()
    identity(organization=organization)
    show.callback()  # type: ignore[misc]


@identity_group.command(context_settings={"ignore_unknown_options": True})
@click.argument("chain", type=FilePath)
@click.argument("root", type=FilePath)
@click.argument("program", nargs=-1, required=True)
def external(chain: Path, root: Path, program: tuple[str, ...]) -> None:
    """Sign through a PROGRAM whose key lies in no file, such as that of a hardware security module.

    CHAIN is the signing certificate and what is between it and the ROOT certificate, both PEM. PROGRAM, with its
    arguments, gets the bytes to sign on its input and writes the signature to its output; it is tried once here.
    """
    from omokage.trust.identity import keep_program

    _refuse_second_identity()
    keep_program(chain, root, program)
    show.callback()  # type: ignore[misc]


@identity_group.command()
@click.argument("authority", required=False)
def stamps(authority: str | None) -> None:
    """Who says when a file was signed, so that it stays trusted after the certificate has ended.

    AUTHORITY is 'own' (this installation, the default), 'none', or the address of an authority (RFC 3161), which is
    then asked at every signature and gets its hash. Without AUTHORITY: what holds now.
    """
    from omokage.trust.identity import identity
    from omokage.trust.stamp_authority import choose

    if authority is not None:
        choose(authority)
    identity()
    click.echo(f"time stamps: {_stamps()}")


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


def _refuse_second_identity() -> None:
    from omokage.home import data_home

    folder = data_home() / "identity"
    if (folder / "signer.pem").exists():
        raise InputError(
            f"an identity is there already, in {folder}; move that folder away first, and keep it: files that it "
            "signed stay trusted with its root"
        )
