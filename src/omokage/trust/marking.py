"""Which mark a release gets: its render's id, from a keyed hash of what is rendered, and the installation's key."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.trust.mark_key import derived, installation_key
from omokage.trust.mark_pattern import PRIVATE_BITS
from omokage.trust.video_mark import PROFILES, Mark, Profile

PROFILE_VARIABLE: Final = "OMOKAGE_MARK_PROFILE"


def pattern_key(key: bytes) -> bytes:
    """The key of the private layer's chips, from the installation's key."""
    return derived(key, b"video mark 1")


def mark_for(
    first: NDArray[np.uint8], facts: Mapping[str, str], sound: NDArray[np.float32] | None = None
) -> Mark:
    """The mark of a render that begins with the picture `first`, uint8 (H, W, 3 or 4), and has these facts and sound.

    Equal renders get equal ids, so that an equal run gives an equal file. The id tells nothing without the key. When
    the facts say in `made_from` what decides the pictures, the picture itself is not asked. Raises OutputError and
    InputError about the key, and InputError for a profile that does not exist.
    """
    key = installation_key()
    content = hashlib.sha256(json.dumps([first.shape, dict(sorted(facts.items()))]).encode())
    if not facts.get("made_from"):
        content.update(first.tobytes())
    if sound is not None:
        content.update(sound.tobytes())
    render_id = int.from_bytes(derived(key, b"render id 1", content.digest())[: PRIVATE_BITS // 8], "big")
    return Mark(render_id, pattern_key(key), chosen_profile())


def id_text(render_id: int) -> str:
    """12 hexadecimal digits."""
    return f"{render_id:0{PRIVATE_BITS // 4}x}"


def chosen_profile() -> Profile:
    """As `OMOKAGE_MARK_PROFILE` says, else 'standard'. Raises InputError."""
    wish = os.environ.get(PROFILE_VARIABLE) or "standard"
    for profile in PROFILES:
        if wish == profile:
            return profile
    raise InputError(f"{PROFILE_VARIABLE} is '{wish}'; use {' or '.join(PROFILES)}")
