"""`omokage demo`: the whole product on the sample portrait. MAIN: `demo`."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray

from omokage.config import ProgressCallback, ignore_progress
from omokage.errors import MissingDependencyError, OutputError
from omokage.files import result_folder
from omokage.media.decode import read_frames
from omokage.pipelines.create import CreateConfig, create_avatar
from omokage.pipelines.reenact import ReenactConfig, reenact
from omokage.pipelines.rehearse import rehearse
from omokage.pipelines.speak import SpeakConfig, speak
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust.consent import Consent, Terms, new_consent
from omokage.trust.consents import keep
from omokage.trust.keys import signing_key
from omokage.trust.label import read_label
from omokage.trust.release import ReleaseConfig, release_clip, release_image

LABEL = read_label("sample").text
TEXT = "Hello. I was made from one picture, on a plain computer, in a few minutes."
REHEARSAL_S = 16.0
SAMPLE_LASTS = timedelta(days=365)
DRIVER_S = 4.0
FRAME_RATE = Fraction(25)
DRIVER_SIZE = 384


@dataclass(frozen=True)
class DemoResult:
    """The files made, in the order in which to open them."""

    files: tuple[Path, ...]


def demo(
    folder: Path, *, minutes: float = 3.0, size: int = 256, on_progress: ProgressCallback = ignore_progress
) -> DemoResult:
    """Rehearse the NASA portrait that scikit-image ships, create an avatar, evaluate, drive it by a drawn head, and let
    it say a sentence where a voice is installed.

    Everything is written into `folder`, with the visible label 'sample, generated', but for the clip that the avatar
    learned from, which `omokage evaluate` needs again. Raises OutputError.
    """
    folder = Path(folder)
    marker = folder / ".omokage-demo"
    if folder.is_dir() and any(folder.iterdir()) and not marker.exists():
        raise OutputError(f"{folder} holds other files; give -o an empty or new folder")
    with result_folder(folder):
        marker.touch()
    portrait, recording, clip = (folder / n for n in ("portrait.png", "recording.mp4", "rehearsal.mp4"))
    avatar, driver, result = (folder / n for n in ("sample.avatar", "driver.mp4", "reenacted.mp4"))
    said = folder / "speaking.mp4"
    label = ReleaseConfig(label=LABEL)
    picture: NDArray[np.uint8] = np.ascontiguousarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]

    release_image(picture, portrait, config=replace(label, origin="recorded"))
    with tempfile.TemporaryDirectory() as hidden:
        photo = Path(hidden) / "photo.png"
        release_image(picture, photo, config=ReleaseConfig(origin="recorded"))
        keep(_sample_consent(photo))
        # The clip to learn from has no visible label, or the avatar would learn the label too.
        rehearse(photo, output=recording, seconds=REHEARSAL_S, on_progress=on_progress)
    release_clip((f.image for f in read_frames(recording)), clip, frame_rate=FRAME_RATE, config=label)
    create_avatar(
        recording,
        output=avatar,
        config=CreateConfig(minutes=minutes, size=size, label=LABEL, photo_only=True, force=True),
        on_progress=on_progress,
    )
    drawn = SyntheticSubject(seed=1)
    performance = drawn.performance(DRIVER_S, frame_rate=float(FRAME_RATE), size=DRIVER_SIZE)
    frames = (frame.image for frame in drawn.render_clip(performance))
    release_clip(
        frames,
        driver,
        frame_rate=FRAME_RATE,
        config=label,
        frame_count=len(performance),
        on_progress=on_progress,
    )
    reenact(avatar, driver, output=result, config=ReenactConfig(label=LABEL), on_progress=on_progress)
    films = [clip, result]
    with suppress(MissingDependencyError):
        speak(avatar, text=TEXT, output=said, config=SpeakConfig(mood="friendly"), on_progress=on_progress)
        films.append(said)
    report = folder / "sample-report"
    return DemoResult((portrait, *films, report / "held-out.mp4", report / "report.html", avatar, recording))


def _sample_consent(photo: Path) -> Consent:
    """A picture in the public domain, for the demo and nothing else, for as long as a demo is looked at."""
    today = date.today()
    terms = Terms(
        kind="sample", purposes=("demo",), start=today.isoformat(), end=(today + SAMPLE_LASTS).isoformat()
    )
    return new_consent([photo], terms, now=datetime.now(UTC), key=signing_key())
