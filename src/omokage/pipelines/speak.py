"""`omokage speak`: an avatar says a recording or a text. MAIN: `speak`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar, SpeechPart
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, WeightsError
from omokage.files import saving
from omokage.media.clip import Audio
from omokage.metrics.talking import INNER_LIPS
from omokage.pipelines.reenact import Driver, ReenactConfig, Reenactment, check_output, perform, performer_of
from omokage.pipelines.speech_encoder import InstalledEncoder, installed_encoder
from omokage.pipelines.speech_track import read_speech, resampled
from omokage.render.retarget import MOUTH, Rest, tracked
from omokage.speaking.cues import Cue, course, read_cues
from omokage.speaking.driver import (
    MOODS,
    Articulation,
    Mood,
    Style,
    driven_by_text,
    fullest,
    motion,
)
from omokage.speaking.encoded import encode
from omokage.speaking.liveliness import Life
from omokage.speaking.personal import PersonalDriver, offsets
from omokage.speaking.phone_reader import driven_by_whole_voice
from omokage.speaking.sound_frames import FRAME_RATE
from omokage.speaking.voices import HOW_TO_INSTALL, installed_voices, misread, speak_text
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.threads import one_blas_thread
from omokage.tracking.arkit import DISTANCE_CM, read_arkit_csv, write_arkit_csv
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.sway import ZONE_COUNT
from omokage.trust.release import check_writable

SHUT_SHARE = 0.04  # of the frames of a recording: those with the lips nearest to each other
LEAST_FULL = 0.2  # what is never moved as far as this is left as it is
REACH_LIMITS = (0.25, 1.2)  # how much less or more than usual a person may move
LEAST_SAID = 0.02  # mean share of speech below which the sound is taken for no voice
DEFAULT_VOICE = "en-us"
NO_ENCODER = (
    "what was learned of this person's speech needs the speech encoder that it was learned with, which is not "
    "installed here; install it with 'omokage weights add speech FOLDER'"
)


@dataclass(frozen=True)
class SpeakConfig(Config):
    """How it is said: `Style` and `Life`, then how it is drawn, as `ReenactConfig` has it.

    gaze: 'free' glances away at times, 'camera' never.  frame_rate: of the video.  driver: 'general' moves every
    avatar's mouth the same way, 'personal' as its person does, as far as that was learned; 'auto' takes the better one.
    """

    driver: Literal["auto", "general", "personal"] = "auto"
    mood: Mood = "neutral"
    energy: float = 1.0
    head: float = 1.0
    blinks_per_minute: float = 14.0
    gaze: Literal["free", "camera"] = "free"
    seed: int = 0
    frame_rate: int = 25
    background: str = "own"
    label: str | None = None
    runtime: str = "auto"
    purpose: str | None = None

    def __post_init__(self) -> None:
        if not 10 <= self.frame_rate <= 60:
            raise InputError(f"frame_rate must lie between 10 and 60 frames a second, got {self.frame_rate}")
        if self.driver not in ("auto", "general", "personal"):
            raise InputError(f"driver must be 'auto', 'general' or 'personal', got '{self.driver}'")
        if self.gaze not in ("free", "camera"):
            raise InputError(f"gaze must be 'free' or 'camera', got '{self.gaze}'")
        self.style()

    def style(self) -> Style:
        glances = 0.0 if self.gaze == "camera" else 1.0
        life = Life(head=self.head, blinks_per_minute=self.blinks_per_minute, glances=glances, seed=self.seed)
        return Style(energy=self.energy, mood=self.mood, life=life)

    def drawing(self) -> ReenactConfig:
        gaze: Literal["driver", "camera"] = "camera" if self.gaze == "camera" else "driver"
        return ReenactConfig(
            gaze=gaze,
            background=self.background,
            label=self.label,
            runtime=self.runtime,
            purpose=self.purpose,
        )


@dataclass(frozen=True)
class Speech:
    """What is said: its sound, what the mouth does, and sentences on what may spoil it. voice (S,): mono at 16 kHz."""

    sound: Audio
    voice: NDArray[np.float32]
    articulation: Articulation
    notes: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        return len(self.sound.samples) / self.sound.sample_rate


@one_blas_thread()
def speak(
    avatar: Path | Avatar | PaperAvatar,
    *,
    output: Path,
    audio: Path | None = None,
    text: str | None = None,
    voice: str = DEFAULT_VOICE,
    curves: Path | None = None,
    curves_output: Path | None = None,
    cues: Path | None = None,
    config: SpeakConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Reenactment:
    """Let an avatar say a recording (`audio`) or a text, read by `voice`; give one of the two.

    curves_output: a table of the 52 named expressions, head and eyes, as phone capture apps write it; edited, it comes
    back as `curves` and is drawn in place of what the voice would do.  cues: a JSON file of what changes meanwhile
    (`speaking.cues`). Raises InputError and its kinds, MissingDependencyError when no voice is installed, OutputError.
    """
    config, output = config or SpeakConfig(), Path(output)
    drawing = config.drawing()
    given = [Path(path) for path in (audio, curves, cues) if path is not None]
    check_output(output, drawing, inputs=given)
    if curves_output is not None:
        check_writable(curves_output, (".csv",), inputs=given)
    listed = read_cues(cues, MOODS) if cues is not None else ()
    # Before what takes long: who may not be shown need not be heard.
    performer = performer_of(avatar, drawing)
    speech = hear_or_read(audio, text, voice, on_progress)
    edited = None
    if curves is not None:
        # Two seconds of time code tell the rate by themselves.
        edited = read_arkit_csv(curves, frame_rate=config.frame_rate if speech.duration_s < 2 else None)
    performer = replace(performer, rest=speaking_rest(performer.rest, performer.track))
    track = motion(speech.articulation, speech.duration_s, config.frame_rate, config.style(), listed)
    track = within_reach(track, performer.rest)
    if edited is not None:
        track = fitted(edited, track)
    else:
        personal, encoder, told = own_driver(performer.speech, config.driver)
        on_progress(Progress("driver", 1, 1, told))
        if personal is not None:
            articulation = heard_as_learned(speech, personal, encoder)
            track = in_own_way(track, personal, articulation, config, listed)
    if curves_output is not None:
        with saving(curves_output) as part:
            part.write_text(write_arkit_csv(track, frame_rate=config.frame_rate), encoding="utf-8")
    made = perform(
        performer,
        Driver(track, Fraction(config.frame_rate), speech.sound, speech.notes),
        output=output,
        config=drawing,
        driving_rest=speaker_rest(),
        reads_back=False,
        on_progress=on_progress,
    )
    # Our own motion was made to fit the person; only curves of the user's may ask for too much.
    return made if edited is not None else replace(made, warnings=speech.notes)


def personal_driver(part: SpeechPart | None, wish: str) -> PersonalDriver | None:
    """The personal driver of an avatar, None for the general one. wish: as `SpeakConfig.driver`.

    Raises InputError when it is wished and was never learned, BundleError when it is damaged.
    """
    if wish == "personal" and part is None:
        raise InputError(
            "this avatar has not learned how its person speaks; run 'omokage learn-speech' with a recording of them, "
            "or leave --driver out"
        )
    if part is None or wish == "general" or (wish == "auto" and not part.settings["report"]["is_better"]):
        return None
    return PersonalDriver.of(part.settings["driver"], part.arrays)


def own_driver(
    part: SpeechPart | None, wish: str
) -> tuple[PersonalDriver | None, InstalledEncoder | None, str]:
    """The personal driver, the encoder that it needs, and a sentence on what speaks. Raises as `personal_driver`, and
    WeightsError when the personal one is wished and its encoder is not there."""
    personal = personal_driver(part, wish)
    if personal is None or part is None:
        is_worse = part is not None and wish != "general"
        return (
            None,
            None,
            "general" + ", which is better here than what was learned of this person" * is_worse,
        )
    encoder = installed_encoder(personal.ear.digest) if personal.ear is not None else None
    if personal.ear is not None and encoder is None:
        if wish == "personal":
            raise WeightsError(NO_ENCODER)
        return None, None, f"general; {NO_ENCODER}"
    return personal, encoder, f"personal, learned from {part.settings['report']['recording']}"


def heard_as_learned(
    speech: Speech, personal: PersonalDriver, encoder: InstalledEncoder | None
) -> Articulation:
    """What is said, heard by the encoder with which the driver learned, if it did with one."""
    if personal.ear is None or encoder is None:
        return speech.articulation
    encoded = encode(encoder.network, speech.voice, personal.ear.reduction)
    return replace(speech.articulation, encoded=encoded.astype(np.float64))


def in_own_way(
    track: FaceTrack,
    personal: PersonalDriver,
    articulation: Articulation,
    config: SpeakConfig,
    cues: Sequence[Cue] = (),
) -> FaceTrack:
    """A motion of the general driver, of this sound, with what the person does otherwise."""
    added = offsets(personal, articulation, config.seed)
    times = np.arange(len(added)) / FRAME_RATE
    start = Cue(0.0, mood=config.mood, energy=config.energy, head=config.head, look=(0.0, 0.0))
    energy = course(cues, start, track.time_s, MOODS).energy[:, None]
    between = np.stack([np.interp(track.time_s, times, column, right=0.0) for column in added.T], axis=1)
    expression = np.clip(track.expression + energy * between, 0, 1)
    return replace(track, expression=expression.astype(np.float32))


def voices_report() -> str:
    """The installed voices, an engine a line, or how to install one."""
    missing = f"not installed; {HOW_TO_INSTALL}"
    return "\n".join(
        f"{engine}: {' '.join(names) or missing}" for engine, names in installed_voices().items()
    )


def hear_or_read(
    audio: Path | None, text: str | None, voice: str, on_progress: ProgressCallback = ignore_progress
) -> Speech:
    """What is to be said. Raises InputError unless one of the two is given."""
    if (audio is None) == (text is None):
        raise InputError("give either a recording to say (--audio) or a text (--text), one of the two")
    if audio is not None:
        heard = read_speech(Path(audio))
        articulation = driven_by_whole_voice(heard.voice, on_progress)
        notes = heard.notes if heard.is_silent else heard.notes + _no_voice(heard.name, articulation)
        return Speech(heard.sound, heard.voice, articulation, notes)
    assert text is not None
    spoken = speak_text(text, voice)
    mono = resampled(spoken.sound, SAMPLE_RATE)[:, 0]
    if spoken.phonemes:
        driven = driven_by_text(spoken.phonemes, mono)
    else:
        driven = driven_by_whole_voice(mono, on_progress)
    return Speech(spoken.sound, mono, driven, misread(text, voice))


def speaking_rest(rest: Rest, track: FaceTrack) -> Rest:
    """A person's rest with shut lips: those of the moments of the recording at which the lips were nearest.

    At rest many keep their lips apart; between two words nobody wants to see that.
    """
    track = tracked(track)
    lips = [point for pair in INNER_LIPS for point in pair]
    fields = track.subject.blendshapes[:, lips].astype(np.float64)
    placed = track.subject.neutral[lips] + rest.skin[lips] + np.tensordot(track.expression, fields, 1)
    gap = np.linalg.norm(placed[:, ::2] - placed[:, 1::2], axis=2).mean(axis=1)
    shut = track.expression[gap <= np.quantile(gap, SHUT_SHARE)].mean(axis=0)
    expression = rest.expression.copy()
    expression[list(MOUTH)] = np.minimum(shut, 1.0)[list(MOUTH)]
    return replace(rest, expression=expression)


def within_reach(track: FaceTrack, rest: Rest) -> FaceTrack:
    """A motion that goes as far as this person's face went, rather than as far as a viseme says."""
    return replace(track, expression=(track.expression * reach_scale(rest)).astype(np.float32))


def reach_scale(rest: Rest) -> NDArray[np.float64]:
    """Factors (52,) on the general driver's expressions with which it goes as far as this person went."""
    full = fullest()
    scale = np.ones(len(BLENDSHAPES))
    for i in np.flatnonzero(full >= LEAST_FULL):
        # Divided by what `relative_expression` multiplies with, so that full is where the person's face was fullest.
        scale[i] = np.clip((rest.reach[i] - rest.expression[i]) / full[i], *REACH_LIMITS)
        scale[i] /= max(1 - rest.expression[i], 0.05)
    return scale


def speaker_rest() -> Rest:
    """The rest of a face that was seen in no picture: nothing is moved."""
    return Rest(
        expression=np.zeros(len(BLENDSHAPES), np.float32),
        reach=np.zeros(len(BLENDSHAPES), np.float32),
        rotation=np.zeros(3),
        translation=np.array([0.0, 0.0, DISTANCE_CM]),
        sway=np.zeros((ZONE_COUNT, 2), np.float32),
        gaze=np.zeros((2, 2), np.float32),
        skin=np.zeros((468, 3)),
        head_width=0.0,
        identity=np.zeros(0, np.float32),
    )


def fitted(curves: FaceTrack, like: FaceTrack) -> FaceTrack:
    """Edited curves at the frames of `like`, by the nearest time; breath stays that of `like`."""
    rows = np.searchsorted((curves.time_s[1:] + curves.time_s[:-1]) / 2, like.time_s)
    taken = curves.select(rows)
    return replace(
        like,
        rotation=taken.rotation,
        expression=taken.expression,
        gaze=taken.gaze,
        is_tracked=taken.is_tracked,
    )


def _no_voice(name: str, articulation: Articulation) -> tuple[str, ...]:
    said = float(np.mean(1 - articulation.visemes[:, 0])) if len(articulation.visemes) else 0.0
    if said >= LEAST_SAID:
        return ()
    return (f"no speech was found in {name}, so the mouth stays closed; is it the right file, loud enough?",)
