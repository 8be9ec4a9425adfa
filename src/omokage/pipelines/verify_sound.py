"""What a file's sound says of where it comes from: the part of `omokage verify` that listens."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from omokage.errors import MediaError
from omokage.media.audio import stream_audio
from omokage.trust.mark_pattern import PRIVATE_BITS, PUBLIC_BITS, PUBLIC_SOUND_KEY, chips_of
from omokage.trust.mark_search import LEAST_PRIVATE_SCORE, LEAST_PUBLIC_SCORE, Key
from omokage.trust.marking import pattern_key
from omokage.trust.sound_mark import sound_key
from omokage.trust.sound_search import SoundFound, find_in_sound
from omokage.trust.sound_signal import Float32
from omokage.trust.video_mark import PUBLIC_SHARE

SOUND_S: Final = 120.0  # of a file that is listened to


@dataclass(frozen=True, slots=True)
class Heard:
    """What was found in a file's sound.

    found: of the public key, then of each secret.  seconds: that were listened to.  has_video: whether the file holds
    pictures too.  problem: why no further.
    """

    found: tuple[SoundFound, ...]
    seconds: float
    has_video: bool
    problem: str = ""


def listen(path: Path, secrets: Sequence[bytes]) -> Heard | None:
    """Look for the marks in the first two minutes of a file's sound; None when it has none.

    A sound that is damaged is told, and looked at as far as it goes: the pictures beside it may still say something.
    """
    pieces: list[Float32] = []
    heard_s, rate, has_video, problem = 0.0, 0, True, ""
    try:
        with contextlib.closing(stream_audio(path)) as stream:
            for piece in stream:
                samples, has_video = piece.audio.samples, piece.has_video
                rate = rate or piece.audio.sample_rate
                pieces.append(samples)
                heard_s += len(samples) / rate
                if heard_s >= SOUND_S:
                    break
    except MediaError as error:
        problem = str(error)
    if not pieces and not problem:
        return None
    sound = np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32)
    return Heard(tuple(find_in_sound(sound, rate, _keys(secrets))), heard_s, has_video, problem)


def _keys(secrets: Sequence[bytes]) -> list[Key]:
    own = (
        Key(chips_of(sound_key(pattern_key(key)), PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)
        for key in secrets
    )
    return [Key(chips_of(PUBLIC_SOUND_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE), *own]
