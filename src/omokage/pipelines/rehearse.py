"""`omokage rehearse`: one photo becomes a short clip to train an avatar from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, NoFaceError
from omokage.files import file_digest
from omokage.media.clip import Image
from omokage.media.decode import read_image
from omokage.render.performance import performance
from omokage.render.rehearsal import Puppet
from omokage.threads import one_blas_thread
from omokage.trust.consent import Use
from omokage.trust.consents import derive, permit
from omokage.trust.guard import Guard
from omokage.trust.release import (
    CLIP_SUFFIXES,
    ReleaseConfig,
    Released,
    check_label,
    check_writable,
    release_clip,
)


@dataclass(frozen=True)
class RehearseConfig(Config):
    """`label`: visible text on every picture, or None; an avatar trained from the clip learns it as background.
    `seed` chooses among performances."""

    label: str | None = None
    seed: int = 0


@one_blas_thread()
def rehearse(
    photo: Path,
    *,
    output: Path,
    seconds: float = 12.0,
    frame_rate: int = 25,
    size: int = 512,
    on_progress: ProgressCallback = ignore_progress,
    config: RehearseConfig | None = None,
) -> Released:
    """Animate the person in a photo: head, mouth, eyes and brows move, the background stands still.

    The clip is square, `size` pixels a side, around the head. Its last fifth repeats in other combinations what came
    before. The same photo and arguments give the same pictures. Raises MediaError when the photo cannot be read,
    ConsentError when nobody agreed,
    NoFaceError or InputError when it does not show one face well enough, OutputError when `output` cannot be written.
    """
    config = config or RehearseConfig()
    if not 1 <= seconds <= 3600 or not 5 <= frame_rate <= 120:
        raise InputError(
            f"a rehearsal takes 1 to 3600 seconds at 5 to 120 frames a second, got {seconds:g} and {frame_rate}"
        )
    check_writable(output, CLIP_SUFFIXES, inputs=[photo])
    check_label(config.label, size, size)
    image = read_image(photo)
    permitted = permit(Use(file_digest(photo), act="create"), name=str(photo))
    on_progress(Progress("reading the face", 0, 1))
    try:
        puppet = Puppet.of(image, size=size)
    except NoFaceError as error:
        raise NoFaceError(f"{photo}: {error}") from error
    except InputError as error:
        raise InputError(f"{photo}: {error}") from error
    on_progress(Progress("reading the face", 1, 1))
    script = performance(seconds, frame_rate, config.seed)

    def pictures() -> Iterator[Image]:
        for state in puppet.states(script):
            yield puppet.draw(state)

    released = release_clip(
        Guard(permitted).frames(pictures()),
        output,
        frame_rate=Fraction(frame_rate),
        config=ReleaseConfig(
            label=config.label, title="omokage rehearsal", purpose="a rehearsal animated from one photo"
        ),
        frame_count=len(script),
        on_progress=on_progress,
    )
    derive(permitted, output)  # who agreed to the photo agreed to the clip
    return released
