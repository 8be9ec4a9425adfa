"""Whose word on the time of a signature counts: this installation's own, an authority's by its address, or nobody's.

MAIN: `stamp_authority`. Under `data_home()/time-stamps` lie `stamper.pem` and `stamper.key`, issued by the root of
`identity` and good for nothing but stamps, and, where something else was chosen, `chosen.json`. Only an address that
somebody typed is ever asked.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from omokage.errors import InputError
from omokage.files import parse_json
from omokage.home import data_home
from omokage.trust.certificates import (
    Certified,
    issue,
    keep_private,
    read_certified,
    refuse_outside_its_days,
)
from omokage.trust.identity import read_root
from omokage.trust.time_stamp import StampAuthority

OWN: Final = "own"
NOBODY: Final = "none"
FORMAT: Final = 1


def stamp_authority(*, now: datetime | None = None) -> StampAuthority | str | None:
    """What stamps a signature: this installation's own authority, the address of another, or None.

    The own one is made where that is needed and its root's key is here; where the root is another's and no
    `stamper.pem` was put there, there is none. Raises InputError for damaged files, a certificate past its date and a
    clock that was set back; OutputError.
    """
    wanted = chosen()
    if wanted != OWN:
        return None if wanted == NOBODY else wanted
    now, folder = now or datetime.now(UTC), _folder()
    root = read_root()
    has_own = (folder / "stamper.pem").exists()
    if root is not None and not (has_own and _is_by(root, _stamper(folder))):
        # As long as the root: what it stamped is judged by the day of the stamp, and its key lies beside the root's.
        end = root.certificate.not_valid_after_utc
        made = issue(
            root, "omokage time stamps", now, end, (ExtendedKeyUsageOID.TIME_STAMPING,), is_critical=True
        )
        keep_private(folder, {"stamper.key": made.key_pem, "stamper.pem": made.pem})
    elif not has_own:
        return None
    stamper = _stamper(folder)
    refuse_outside_its_days(stamper.certificate, folder / "stamper.pem", now)
    return StampAuthority(stamper)


def check_stamps() -> None:
    """Tell before long work, and without making anything, what `stamp_authority` would raise."""
    if chosen() == OWN and (_folder() / "stamper.pem").exists():
        stamp_authority()


def chosen() -> str:
    """'own', 'none', or an address. Raises InputError."""
    path = _folder() / "chosen.json"
    try:
        said = parse_json(path.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise ValueError("it is of a newer version")
        return _valid(said["authority"])
    except FileNotFoundError:
        return OWN
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be used ({error}); choose again with 'omokage identity stamps'"
        ) from error


def choose(authority: str) -> None:
    """Have signatures stamped by 'own', 'none', or the address of an authority (RFC 3161).

    Raises InputError, OutputError.
    """
    try:
        said = {"format": FORMAT, "authority": _valid(authority)}
    except ValueError as error:
        raise InputError(f"'{authority}' stamps nothing: {error}") from error
    keep_private(_folder(), {"chosen.json": json.dumps(said).encode()})


def _valid(authority: str) -> str:
    if authority not in (OWN, NOBODY) and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", authority):
        raise ValueError("use 'own', 'none' or an address that begins with https:// or http://")
    return authority


def _folder() -> Path:
    return data_home() / "time-stamps"


def _stamper(folder: Path) -> Certified:
    return read_certified(folder / "stamper.pem", folder / "stamper.key")


def _is_by(root: Certified, stamper: Certified) -> bool:
    try:
        stamper.certificate.verify_directly_issued_by(root.certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
