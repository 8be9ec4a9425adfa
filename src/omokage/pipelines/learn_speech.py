"""`omokage learn-speech`, and a part of `create`: a recording's own way of speaking. MAIN: `learned_speech`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar, SpeechPart
from omokage.config import Config, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.files import file_digest
from omokage.media.decode import probe, read_frames
from omokage.metrics.talking import INNER_LIPS, lag_curve, mouth_opening
from omokage.pipelines.carry import save_avatar
from omokage.pipelines.recording import MAX_SIDE_PX, tracked
from omokage.pipelines.speak import reach_scale, speaker_rest, speaking_rest
from omokage.pipelines.speech_encoder import InstalledEncoder, installed_encoder
from omokage.pipelines.speech_track import SpeechTrack, read_speech
from omokage.pipelines.work import Work
from omokage.render.retarget import JAW, SCALE_LIMITS, Rest, relative_expression
from omokage.speaking.driver import REST, Articulation
from omokage.speaking.encoded import Reduction, encode
from omokage.speaking.hearing import HOPS_PER_S
from omokage.speaking.personal import CHANNELS, Ear, PersonalDriver
from omokage.speaking.personal_training import (
    LEAST_SPEECH_S,
    LEAST_TAIL_S,
    LearningConfig,
    Material,
    Verdict,
    learn,
    speech_seconds,
)
from omokage.speaking.phone_reader import driven_by_whole_voice
from omokage.speaking.sound_frames import FRAME_RATE
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.threads import one_blas_thread
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.visemes import NAMES, shapes
from omokage.trust.consent import Use
from omokage.trust.consents import permit
from omokage.trust.guard import Guard
from omokage.trust.release import check_writable

Float = NDArray[np.float64]

HELD_OUT_SHARE = 0.2
LONGEST_S = 300.0  # of a recording is used, held-out end included
FARTHEST_LAG_S = 0.4
LEAST_LAG_R = 0.25  # correlation at the best lag
# From two frames on sound and picture are apart for people, too: then the correlation must be so much more than at 0.
APART_S, LEAST_GAIN = 0.08, 0.1
SUFFIX = ".avatar"


@dataclass(frozen=True)
class LearnSpeechConfig(Config):
    """learning: how.  resume: go on from a stopped run."""

    learning: LearningConfig = field(default_factory=LearningConfig)
    resume: bool = True


@dataclass(frozen=True)
class LearnedSpeech:
    """What a recording taught. part: for the avatar, None when there was nothing to learn from.  sentences: what to
    tell.  verdict: on frames that were never learned from.  lag_s: by which the picture came after its sound.
    seconds: of learning."""

    part: SpeechPart | None
    sentences: tuple[str, ...]
    verdict: Verdict | None = None
    lag_s: float = 0.0
    seconds: float = 0.0


@one_blas_thread()
def learn_speech(
    avatar: Path,
    recording: Path,
    *,
    config: LearnSpeechConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> LearnedSpeech:
    """Teach an avatar how its person speaks, from a recording of them with sound; the file is replaced at the end.

    A stopped run leaves `<avatar>.speech.work` beside it and goes on from there. Raises BundleError, ConsentError,
    MediaError, NoFaceError, OutputError, and InputError for a recording that teaches nothing.
    """
    config = config or LearnSpeechConfig()
    avatar, recording = Path(avatar), Path(recording)
    check_writable(avatar, (SUFFIX,), inputs=[recording])
    person, digest = Avatar.load(avatar), file_digest(recording)
    guard = Guard(permit(Use(digest, act="create"), name=str(recording)))
    on_progress = guard.progress(on_progress)
    encoder = installed_encoder()
    place, settings = avatar.with_name(f"{avatar.name}.speech"), config.learning.to_json()
    data = {"recording": digest, "encoder": "" if encoder is None else encoder.digest}
    with Work.open(place, data=data, settings=settings, is_resumed=config.resume) as work:
        track = _track(recording, work, on_progress)
        learned = learned_speech(
            recording, track, config.learning, encoder, folder=work.folder, on_progress=on_progress
        )
        if learned.part is None:
            raise InputError(" ".join(learned.sentences))
        guard.check_now()
        save_avatar(replace(person, speech=learned.part), avatar)
    return learned


def learned_speech(
    recording: Path,
    track: FaceTrack,
    config: LearningConfig | None = None,
    encoder: InstalledEncoder | None = None,
    *,
    folder: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> LearnedSpeech:
    """Learn from a recording that is tracked, all but its last fifth, on which the result is measured.

    encoder: listens too, if it helps.  folder: for checkpoints. Raises MediaError for a sound that cannot be read.
    """
    config, started = config or LearningConfig(), time.monotonic()
    if not probe(recording).has_audio:
        return _nothing(f"{recording.name} has no sound")
    speech = read_speech(recording)
    if speech.is_silent:
        return _nothing(f"the sound of {recording.name} is silent")
    material, lag_s = material_of(*near_the_border(speech, track), encoder, on_progress)
    said, said_in_tail = speech_seconds(material)
    if said < LEAST_SPEECH_S or said_in_tail < LEAST_TAIL_S:
        return _nothing(
            f"{recording.name} holds {said:.0f} seconds of speech to learn from and {said_in_tail:.0f} to measure "
            f"with, {LEAST_SPEECH_S:.0f} and {LEAST_TAIL_S:.0f} are needed"
        )
    learned = learn(material, config, folder=folder, on_progress=on_progress)
    driver, verdict = learned.driver, learned.verdict
    seconds = time.monotonic() - started
    report = {
        "recording": recording.name,
        "recording_sha256": file_digest(recording),
        "is_better": verdict.is_better,
        "verdict": verdict.to_json(),
        "lag_s": round(lag_s, 3),
        "seconds": round(seconds, 1),
    }
    part = SpeechPart({"driver": driver.settings(), "report": report}, driver.arrays())
    sentences = (_lag_sentence(lag_s), _encoder_sentence(material, driver), _verdict_sentence(verdict))
    return LearnedSpeech(part, tuple(filter(None, sentences)), verdict, lag_s, seconds)


def near_the_border(speech: SpeechTrack, track: FaceTrack) -> tuple[SpeechTrack, FaceTrack]:
    """Of a long recording the minutes before its held-out end, and the first of that: more teaches little."""
    seen = track.time_s[track.is_tracked]
    border_s = float(seen[round((1 - HELD_OUT_SHARE) * (len(seen) - 1))])
    start_s = border_s - (1 - HELD_OUT_SHARE) * LONGEST_S
    end_s = border_s + HELD_OUT_SHARE * LONGEST_S
    if start_s <= 0:
        return speech, track
    rows = (track.time_s >= start_s) & (track.time_s < end_s)
    part = track.select(rows)
    voice = speech.voice[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
    return replace(speech, voice=voice), replace(part, time_s=part.time_s - start_s)


def material_of(
    speech: SpeechTrack,
    track: FaceTrack,
    encoder: InstalledEncoder | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> tuple[Material, float]:
    """What there is to learn from, and by how many seconds the picture comes after its sound: they are put together."""
    seen = track.select(track.is_tracked)
    border_s = float(seen.time_s[round((1 - HELD_OUT_SHARE) * (len(seen) - 1))])
    before = seen.select(seen.time_s < border_s)
    rest = speaking_rest(Rest.of(before), before)
    articulation, ear = driven_by_whole_voice(speech.voice, on_progress), None
    if encoder is not None:
        encoded = encode(encoder.network, speech.voice)
        ear = Ear(encoder.digest, Reduction.of(encoded[: max(1, round(border_s * HOPS_PER_S))]))
        articulation = replace(articulation, encoded=ear.reduction(encoded))
    times = np.arange(0, min(float(seen.time_s[-1]), len(speech.voice) / SAMPLE_RATE), 1 / FRAME_RATE)
    opening = mouth_opening(seen.landmarks.astype(np.float64))
    lag_s = picture_lag(articulation, before, mouth_opening(before.landmarks.astype(np.float64)))
    articulation = shifted(articulation, lag_s)
    nearest = np.abs(seen.time_s[np.searchsorted(seen.time_s, times).clip(0, len(seen) - 1)] - times)
    known = np.minimum(
        nearest, np.abs(seen.time_s[(np.searchsorted(seen.time_s, times) - 1).clip(0)] - times)
    )
    mouth = way_from_rest(seen.expression.astype(np.float64), rest)[:, CHANNELS]
    material = Material(
        articulation,
        mouth=np.stack([np.interp(times, seen.time_s, column) for column in mouth.T], axis=1),
        is_known=known <= 1.5 / FRAME_RATE,
        opening=np.interp(times, seen.time_s, opening),
        border=int(np.searchsorted(times, border_s)),
        reach=reach_scale(rest)[list(CHANNELS)],
        opened=lambda way: lip_gap(seen, relative_expression(way.astype(np.float32), rest, speaker_rest())),
        ear=ear,
    )
    return material, lag_s


def way_from_rest(expression: Float, rest: Rest) -> Float:
    """Expressions (T, 52) of a person -> those of a driver at `speaker_rest` who makes them so; never below rest."""
    up = np.clip(np.maximum(1 - rest.expression.astype(np.float64), 0.05), *SCALE_LIMITS)
    return np.asarray(np.clip((expression - rest.expression) / up, 0, 1))


def lip_gap(track: FaceTrack, expression: NDArray[np.floating]) -> Float:
    """Mean distance (T,) in cm between the inner lips of a track's person, with expressions (T, 52)."""
    lips = [point for pair in INNER_LIPS for point in pair]
    fields = track.subject.blendshapes[:, lips].astype(np.float64)
    placed = track.subject.neutral[lips] + np.tensordot(expression.astype(np.float64), fields, 1)
    return np.asarray(np.linalg.norm(placed[:, ::2] - placed[:, 1::2], axis=2).mean(axis=1))


def shifted(articulation: Articulation, by_s: float) -> Articulation:
    """The same sound later (above 0) or earlier, with silence where there is none."""
    hops = round(by_s * HOPS_PER_S)
    if not hops:
        return articulation

    def moved(values: Float, silent: Any) -> Float:
        gap = np.full((min(abs(hops), len(values)), *values.shape[1:]), silent, dtype=values.dtype)
        kept = values[: len(values) - hops] if hops > 0 else values[-hops:]
        return np.concatenate([gap, kept] if hops > 0 else [kept, gap])[: len(values)]

    return Articulation(
        moved(articulation.visemes, np.eye(len(NAMES))[REST]),
        moved(articulation.level, 0.0),
        moved(articulation.bands, -1.0),
        moved(articulation.voicing, 0.0),
        moved(articulation.encoded, 0.0),
    )


def picture_lag(articulation: Articulation, track: FaceTrack, opening: Float) -> float:
    """Seconds by which a mouth comes after its sound: the highest correlation of the general driver's jaw with the
    recording's jaw and with its opening (T,), 0 when there is no clear one."""
    rate = float(1 / np.median(np.diff(track.time_s)))
    hops = (np.arange(len(articulation.visemes)) + 0.5) / HOPS_PER_S
    found = np.interp(track.time_s, hops, (articulation.visemes @ shapes())[:, JAW])
    curves = [
        lag_curve(found, known.astype(np.float64), rate, FARTHEST_LAG_S)
        for known in (track.expression[:, JAW], opening)
    ]
    r = np.mean([np.nan_to_num(curve.r) for curve in curves], axis=0)
    best = int(np.argmax(r))
    lag_s = float(curves[0].lag_s[best])
    is_clear = r[best] >= LEAST_LAG_R and (abs(lag_s) < APART_S or r[best] - r[len(r) // 2] >= LEAST_GAIN)
    is_inside = 0 < best < len(r) - 1  # a curve that still rises at the end has no peak
    if not (is_clear and is_inside):
        return 0.0
    # Lags are whole frames apart, hops a hundredth of a second: the top of a parabola through the three highest.
    before, top, after = r[best - 1 : best + 2]
    bend = 2 * top - before - after
    beyond_s = 0.5 * float((after - before) / bend) / rate if bend > 0 else 0.0
    return lag_s + (beyond_s if abs(beyond_s) >= 0.5 / HOPS_PER_S else 0.0)  # less moves no hop


def _track(recording: Path, work: Work, on_progress: ProgressCallback) -> FaceTrack:
    if work.track.exists():
        return FaceTrack.load(work.track)
    track = tracked(probe(recording), read_frames(recording, max_side=MAX_SIDE_PX), on_progress)
    track.save(work.track)
    return track


def _nothing(reason: str) -> LearnedSpeech:
    return LearnedSpeech(
        None,
        (
            f"{reason}, so nothing was learned of how this person speaks; the avatar speaks in the general way",
        ),
    )


def _lag_sentence(lag_s: float) -> str:
    if abs(lag_s) < APART_S:
        return ""
    order = "after" if lag_s > 0 else "before"
    return (
        f"the picture of this recording comes {abs(lag_s):.2f} seconds {order} its sound; that was put right for "
        "learning, and the avatar speaks on time"
    )


def _encoder_sentence(material: Material, driver: PersonalDriver) -> str:
    if material.ear is None:
        return ""
    if driver.ear is None:
        return "the installed speech encoder did not help with this person, and is not needed"
    return "the installed speech encoder helped; the avatar needs it wherever it speaks in this person's way"


def _verdict_sentence(verdict: Verdict) -> str:
    numbers = (
        f"its mouth follows the last fifth of the recording with a correlation of {verdict.personal.all:.2f} "
        f"({verdict.personal.speaking:.2f} while speaking), the general driver's with {verdict.general.all:.2f} "
        f"({verdict.general.speaking:.2f})"
    )
    if verdict.is_better:
        return f"this person's own way of speaking was learned: {numbers}"
    return f"what was learned of this person's speech is no better, and the avatar speaks in the general way: {numbers}"
