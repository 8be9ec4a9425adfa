"""What an avatar file is worth here, told without opening it: the part of `omokage verify` for avatars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from omokage.errors import MediaError
from omokage.files import open_given
from omokage.vault.avatar_keys import Erasure, find_record
from omokage.vault.sealed import MAGIC, Seal, SealBroken

Protection = Literal["own key", "key not here", "key destroyed", "passphrase", "none"]
_SAID: Final[dict[Protection, str]] = {
    "own key": "encrypted, and its key is on this machine",
    "key not here": "encrypted, and its key is not on this machine",
    "passphrase": "encrypted under a passphrase, for another machine; what it was made of is told once it is taken in",
    "none": "not encrypted: whoever has the file has the avatar",
}
_PLAIN_HEADER: Final = 9  # bytes: eight of its length, and where its JSON begins


@dataclass(frozen=True, slots=True)
class AvatarFile:
    """protection: how it is encrypted.  media: SHA-256 of the recordings that it was made of, as far as they can be
    told; those of a plain file are what the file itself says.  erasure: why its key is gone."""

    protection: Protection
    media: tuple[str, ...] = ()
    erasure: Erasure | None = None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None for a file of another kind. Raises MediaError for what cannot be read, InputError for a damaged key."""
        with open_given(path, MediaError) as file:
            try:
                head = file.read(max(len(MAGIC), _PLAIN_HEADER))
                if not head.startswith(MAGIC):
                    return cls._plain(path) if head[8:9] == b"{" else None
                file.seek(0)
                seal = Seal.read(file)
            except SealBroken as error:
                raise MediaError(f"{path} is a damaged avatar file ({error}); use a copy") from error
        assert seal is not None
        if seal.wrapped is not None:
            return cls("passphrase")
        record = find_record(seal.key)
        if record is None:
            return cls("key not here")
        return cls("key destroyed" if record.erasure else "own key", record.media, record.erasure)

    @classmethod
    def _plain(cls, path: Path) -> Self | None:
        from omokage.avatar.container import plain_media  # torch, which nothing else here needs

        media = plain_media(path)
        return None if media is None else cls("none", media)

    def to_json(self) -> dict[str, Any]:
        gone = self.erasure
        return {
            "protection": self.protection,
            "media": list(self.media),
            "key_destroyed": gone and {"at": gone.at, "consent": gone.consent, "withdrawn": gone.withdrawn},
        }

    def lines(self) -> Iterator[str]:
        if self.erasure is None:
            yield _SAID[self.protection]
        else:
            yield (
                f"encrypted, and nobody can open it any more: its key was destroyed on {self.erasure.at[:10]}, as the "
                f"consent {self.erasure.consent[:12]} was withdrawn on {self.erasure.withdrawn}"
            )
