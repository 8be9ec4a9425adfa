"""Avatars are written, leave for another machine or as plain files, and are taken in.

MAIN: `save_avatar`, `export_avatar`, `import_avatar`.
"""

from __future__ import annotations

from pathlib import Path

from omokage.avatar.bundle import Avatar
from omokage.avatar.container import Content, read_content, write_content
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.errors import ConsentError, InputError
from omokage.pipelines.work import SUFFIX
from omokage.trust.audit import IMPORT, AuditLog
from omokage.trust.consent import Use
from omokage.trust.consents import permit, withdrawal_of
from omokage.trust.release import Released, check_writable, release_model
from omokage.vault.sealed import is_travelling

SHORTEST_PASSPHRASE = 12  # letters; a file that is taken can be tried as often as anybody likes


def save_avatar(avatar: Avatar | PaperAvatar, output: Path) -> Released:
    """Write an avatar through the door; one that is written anew keeps its key. Raises OutputError."""
    recording = getattr(
        avatar.provenance if isinstance(avatar, Avatar) else avatar.origin, "recording_sha256", ""
    )
    return release_model(
        lambda part: avatar.save(part, in_place_of=output), output, kind="avatar", avatar=recording
    )


def export_avatar(avatar: Path, *, output: Path, passphrase: str | None) -> Released:
    """Write an avatar that opens elsewhere, with a row in the audit log.

    passphrase: opens it on any machine with `import_avatar`. None writes a plain file, which everybody can read and no
    withdrawal reaches. Raises BundleError, InputError for a short passphrase, ConsentError when nobody agrees any more,
    OutputError.
    """
    avatar, output = Path(avatar), Path(output)
    check_writable(output, (SUFFIX,), inputs=[avatar])
    if passphrase is not None:
        check_passphrase(passphrase)
    content = read_content(avatar)
    permits = [permit(Use(sha256, act="create"), name=_name(content, avatar)) for sha256 in content.media]
    facts = {
        "is_encrypted": passphrase is not None,
        "avatar": list(content.media),
        "consent": [permitted.consent.id for permitted in permits],
    }
    pieces = [content.serialized()] if passphrase is None else content.under_passphrase(passphrase)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.writelines(pieces)

    personal = {"from": str(avatar.absolute())}
    return release_model(write, output, kind="avatar", facts=facts, personal=personal)


def import_avatar(source: Path, *, output: Path, passphrase: str | None = None) -> None:
    """Take in an avatar that was exported, or a plain file of an earlier omokage, and seal it for this machine.

    Raises BundleError, InputError for a wrong passphrase, ConsentError for a consent withdrawn here, OutputError.
    """
    source, output = Path(source), Path(output)
    check_writable(output, (SUFFIX,), inputs=[source])
    content = read_content(source, passphrase=passphrase)
    if found := withdrawal_of(content.media):
        raise ConsentError(
            f"{source} is not taken in: the consent {found[0][:12]} for {_name(content, source)} was withdrawn on "
            f"{found[1]}"
        )
    AuditLog().append(IMPORT, {"avatar": list(content.media)}, {"path": str(output.absolute())})
    write_content(output, content)


def needs_passphrase(source: Path) -> bool:
    """Whether an avatar file was exported under one. False for what cannot be read."""
    return is_travelling(Path(source))


def check_passphrase(passphrase: str) -> None:
    """Raises InputError for one that is soon guessed."""
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise InputError(
            f"the passphrase has {len(passphrase)} characters; {SHORTEST_PASSPHRASE} are needed at least, such as four "
            "words that do not belong together"
        )


def _name(content: Content, path: Path) -> str:
    made = content.header.get("provenance")
    return str(made.get("recording_name", path.name)) if isinstance(made, dict) else path.name
