"""`omokage consent new --answer`: a clip in which a person says and does what was asked, checked as far as that goes
without a network. MAIN: `check_answer`.

What is said is for the witness to hear: no offline recogniser of speech is good enough (docs/consent.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np

from omokage.capture.gestures import GESTURES, first_missing, found_gestures
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import ConsentError, NoFaceError
from omokage.files import file_digest
from omokage.media.clip import Frame
from omokage.media.decode import probe, read_audio, read_frames, read_image
from omokage.media.image import is_still_image
from omokage.pipelines.verify import verify
from omokage.speaking.hearing import hear
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.tracking.landmarks import FaceCounter
from omokage.tracking.likeness import ALIKE, ALIKE_STILL, likeness, skin_pattern
from omokage.tracking.tracker import MIN_SKIN_FRAMES, track_clip
from omokage.trust.challenge import close_challenge, open_challenge
from omokage.trust.consent import Answer

LONGEST_S, LEAST_SPOKEN_S = 90.0, 1.5
RATE = Fraction(25, 2)  # frames a second that are looked at
LARGEST_PX = 512
COMPARED = 40  # frames of each recording
COUNTED = 100  # frames in which faces are counted
MOST_CROWDED = 0.02  # share of frames with more than one face


def check_answer(
    clip: Path,
    media: Sequence[Path],
    heard: str,
    *,
    now: datetime | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Answer:
    """The answer, by `clip`, of the person in `media` to the challenge whose digits a witness heard in it.

    media: recordings or portraits. A challenge and a clip count once, and only when everything holds. Raises
    ConsentError with all that does not, MediaError when a file cannot be read.
    """
    now, digest = now or datetime.now(UTC), file_digest(clip)
    challenge = open_challenge(heard, digest, now=now)
    duration_s = probe(clip).duration_s
    if duration_s > LONGEST_S:
        raise ConsentError(f"{clip} lasts {duration_s:.0f} s; an answer takes {LONGEST_S:.0f} s at most")
    steps = 3 + len(media)
    on_progress(Progress("answer", 0, steps))
    problems = [*_is_alone(clip), *_is_recorded(clip), *_is_spoken(clip)]
    on_progress(Progress("answer", 1, steps))
    try:
        track = track_clip(read_frames(clip, frame_rate=RATE, max_side=LARGEST_PX))
        missing = first_missing(found_gestures(track), challenge.gestures)
        if missing is not None:
            asked = ", then ".join(GESTURES[name] for name in challenge.gestures)
            problems.append(f"'{GESTURES[missing]}' was not seen at its place; asked was: {asked}")
        on_progress(Progress("answer", 2, steps))
        person, alike = skin_pattern(_spread(clip, COMPARED)), []
        for done, medium in enumerate(media, 3):
            is_still = is_still_image(medium)
            pattern = skin_pattern(_spread(medium, COMPARED), least=1 if is_still else MIN_SKIN_FRAMES)
            alike.append(likeness(person, pattern))
            if alike[-1] < (ALIKE_STILL if is_still else ALIKE):
                problems.append(
                    f"the face is not like that in {medium.name} ({alike[-1]:.2f}, "
                    f"{ALIKE_STILL if is_still else ALIKE} is needed); record the answer in the same light"
                )
            on_progress(Progress("answer", done, steps))
    except NoFaceError as error:
        problems.append(str(error).rstrip("."))
    if problems:
        raise ConsentError(f"{clip} is no answer: " + "; ".join(problems))
    close_challenge(challenge, digest, now=now)
    on_progress(Progress("answer", steps, steps))
    return Answer(
        clip=digest,
        code=challenge.code,
        gestures=challenge.gestures,
        likeness=round(min(alike), 2),
        answered=now.astimezone(UTC).isoformat(timespec="seconds"),
    )


def _is_alone(clip: Path) -> Iterator[str]:
    counter = FaceCounter()
    counts = [counter.count(frame.image) for frame in _spread(clip, COUNTED)]
    crowded = float(np.mean([count > 1 for count in counts]))
    if crowded > MOST_CROWDED:
        yield f"more than one face is seen in {100 * crowded:.0f} % of it; be alone before the camera"


def _is_recorded(clip: Path) -> Iterator[str]:
    """Not made by omokage, nor by anything that says so."""
    found = verify(clip).files[0]
    if found.verdict != "no mark found" or "generated" in found.disclosure.lower():
        yield "it is a generated clip; an answer is recorded with a camera"
    elif "algorithmic" in found.origin.source_type.lower():
        yield f"its signed origin says that it is generated ({found.origin.source_type})"


def _is_spoken(clip: Path) -> Iterator[str]:
    sound = read_audio(clip, sample_rate=SAMPLE_RATE)
    if sound is None:
        yield "it has no sound, and the digits are to be said"
        return
    speech = hear(sound.samples.mean(axis=1)).speech
    spoken_s = float((speech > 0.5).mean()) * len(sound.samples) / SAMPLE_RATE
    if spoken_s < LEAST_SPOKEN_S:
        yield f"{spoken_s:.1f} s of speech are heard in it; say the digits one by one"


def _spread(path: Path, count: int) -> Iterator[Frame]:
    """So many frames of all of a recording; of a picture, that one twice, as the tracker settles on a face."""
    if is_still_image(path):
        image = read_image(path)
        yield from (Frame(index, index / 25, image) for index in range(2))
        return
    duration_s = probe(path).duration_s
    rate = Fraction(count / max(duration_s, 0.1)).limit_denominator(1000)
    yield from itertools.islice(
        read_frames(path, frame_rate=min(rate, Fraction(25)), max_side=LARGEST_PX), count
    )
