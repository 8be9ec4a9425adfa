"""How well an avatar speaks as its person does: the personal driver beside the general one, on ends of recordings that
were never learned from.

    python benchmarks/speaking_personal.py CLIP... --output benchmarks/results/speaking-personal.json

Each CLIP is a recording of one person who speaks. It is tracked, all but the last fifth is learned from, and on that
the opening of the drawn person's lips is compared with the recorded one. With --lengths instead of clips, people are
made up who speak for so many seconds, each with a way of their own:

    python benchmarks/speaking_personal.py --lengths 10 20 40 60 --output speaking-personal-lengths.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder
from reports import command
from scipy.ndimage import gaussian_filter1d, minimum_filter1d
from speaking import _round, against

from omokage.media.decode import read_frames
from omokage.metrics.talking import FAR_S, pearson
from omokage.pipelines.bench import machine
from omokage.pipelines.learn_speech import material_of
from omokage.pipelines.recording import MAX_SIDE_PX
from omokage.pipelines.speech_encoder import installed_encoder
from omokage.pipelines.speech_track import read_speech, resampled
from omokage.speaking.driver import driven_by_text, speaking
from omokage.speaking.hearing import BANDS, HOPS_PER_S
from omokage.speaking.personal import CHANNELS, PersonalDriver, offsets
from omokage.speaking.personal_training import (
    FOLDS,
    LEAST_SPEECH_S,
    LEAST_TAIL_S,
    Learned,
    Material,
    learn,
    speech_seconds,
)
from omokage.speaking.phone_reader import as_pcm, driven_by_whole_voice
from omokage.speaking.phonemes import Phoneme, viseme_weights, visemes_of
from omokage.speaking.sound_frames import FRAME_RATE, FUTURE, PAST, sound_frames
from omokage.speaking.voices import speak_text
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.tracker import track_clip
from omokage.tracking.visemes import shapes

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from learn_voice_reader import EXAM, said_by_flite, text

Float = NDArray[np.float64]
SHUT = 0.05  # of the way from rest to the fullest opening: lips that look shut
MET = 0.1  # the same: lips that meet for a moment, of recorded people nearly all on m, b and p
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
SILENT = 0.05  # of `speaking`
# Of made-up people: how unlike everybody's their visemes are (deviation of a logarithm), how late and slurred; motion
# that has nothing to do with speech, against that of speech.
OWN_WAY, OWN_LAG_S, OWN_BLUR_S, WANDER = 0.5, 0.03, 0.04, 0.4


def measured(clip: Path, tracks: Path | None) -> dict[str, Any]:
    """All numbers of a clip."""
    speech, track = read_speech(clip), tracked(clip, tracks)
    encoder = installed_encoder()
    material, lag_s = material_of(speech, track, encoder)
    said, in_tail = speech_seconds(material)
    row: dict[str, Any] = {
        "clip": clip.name,
        "seconds": _round(speech.duration_s),
        "speech_learned_s": _round(said),
        "speech_held_out_s": _round(in_tail),
        "picture_after_sound_s": _round(lag_s),
    }
    if said < LEAST_SPEECH_S or in_tail < LEAST_TAIL_S:
        return row | {"kept": "general", "why": "too little speech"}
    start = time.perf_counter()
    learned = learn(material)
    driver, verdict = learned.driver, learned.verdict
    row["training_minutes"] = _round((time.perf_counter() - start) / 60)
    start = time.perf_counter()
    added = offsets(driver, material.articulation)
    row["added_real_time_factor"] = _round((time.perf_counter() - start) / speech.duration_s)
    row["kept"] = "personal" if verdict.is_better else "general"
    row["network_strength"], row["share"] = driver.strength, driver.share
    row["encoder"] = (
        None if encoder is None else {"listens": driver.ear is not None, "digest": encoder.digest}
    )
    row["cross_validated"] = {"personal": verdict.cross.to_json(), "general": verdict.cross_general.to_json()}
    for name, what in (("personal", added), ("general", np.zeros_like(added))):
        row[name] = driven(material, driver, what)
    row["ways"] = ways(material, learned)
    row["personal"]["silent_sound_moves"] = _round(moved_by_silence(driver))
    row["recorded"] = motion_numbers(recorded(material)[material.border :])
    row["bilabials"] = lips_meet(material, driver, added, bilabials(speech.voice) + lag_s)
    row["text"] = spoken_text(material, driver)
    return row


def ways(material: Material, learned: Learned) -> list[dict[str, Any]]:
    """Other ways to the same end: correlation while speaking, cross-validated and on the held-out end."""
    sound, visemes = sound_frames(material.articulation)
    sound, is_said = sound[: len(material.mouth)], speaking(visemes[: len(material.mouth)]) > 0.5
    rows = [
        {"way": f"ridge to the opening, from {name}", **ridge(material, sound[:, columns], is_said)}
        for name, columns in (("bands", slice(0, BANDS)), ("bands, visemes, voicing", slice(None)))
    ]
    for strength, name in ((0.0, "Gaussian process"), (1.0, "Gaussian process and networks")):
        driver = replace(learned.driver, strength=strength, share=1.0)
        cross = next(c.cross for c in learned.tried if (c.strength, c.share) == (strength, 1.0))
        found = opened(material, driver, visemes, offsets(driver, material.articulation))
        rows.append(
            {
                "way": name,
                "cross": _round(cross.speaking),
                "held_out": while_speaking(material, found, is_said),
            }
        )
    return rows


def ridge(material: Material, sound: Float, is_said: NDArray[np.bool_]) -> dict[str, float]:
    """A linear map from windows of sound (T, C) to the opening, as weak as serves it best."""
    padded = np.pad(sound, ((PAST, FUTURE), (0, 0)), mode="edge")
    view = np.lib.stride_tricks.sliding_window_view(padded, PAST + 1 + FUTURE, axis=0)
    inputs = view.reshape(len(sound), -1)
    inputs = (inputs - inputs.mean(axis=0)) / np.maximum(inputs.std(axis=0), 1e-3)
    border, best = material.border, {"cross": -1.0, "held_out": 0.0}

    def fitted(rows: NDArray[np.int64], weight: float) -> Float:
        similar = inputs @ inputs[rows].T / inputs.shape[1]
        mean = material.opening[rows].mean()
        solved = np.linalg.solve(similar[rows] + weight * np.eye(len(rows)), material.opening[rows] - mean)
        return np.asarray(similar @ solved + mean)

    for weight in RIDGES:
        cross = np.zeros(border)
        for fold in np.array_split(np.arange(border), FOLDS):
            outside = np.setdiff1d(np.arange(border), np.arange(fold[0] - 5, fold[-1] + 6))
            cross[fold] = fitted(outside, weight)[fold]
        r = pearson(cross[is_said[:border]], material.opening[:border][is_said[:border]])
        if r > best["cross"]:
            found = fitted(np.arange(border), weight)
            best = {"cross": _round(r), "held_out": while_speaking(material, found, is_said)}
    return best


def while_speaking(material: Material, found: Float, is_said: NDArray[np.bool_]) -> float:
    tail = np.arange(material.border, len(material.mouth))
    tail = tail[is_said[tail]]
    return _round(pearson(found[tail], material.opening[tail]))


def tracked(clip: Path, tracks: Path | None) -> FaceTrack:
    """The clip's track, read from a folder where it was kept."""
    kept = None if tracks is None else tracks / f"{clip.stem}.track"
    if kept is not None and kept.exists():
        return FaceTrack.load(kept)
    track = track_clip(read_frames(clip, max_side=MAX_SIDE_PX))
    if kept is not None:
        track.save(kept)
    return track


def driven(material: Material, driver: PersonalDriver, added: Float) -> dict[str, Any]:
    """Correlations on the held-out end, all of it and while it is spoken, and lips in silence."""
    _, visemes = sound_frames(material.articulation)
    opening = opened(material, driver, visemes, added)[: len(material.mouth)]
    is_speech = speaking(visemes[: len(opening)])
    tail = slice(material.border, None)
    found, known, is_said = opening[tail], material.opening[tail], is_speech[tail] > 0.5
    silent = is_speech <= SILENT
    return {
        "opening": against(found, known, FRAME_RATE) | {"shuffled": moved_on(found, known)},
        "while_speaking": _round(pearson(found[is_said], known[is_said])),
        "shut_in_silence": _round(float(is_shut(material, opening)[silent].mean())) if silent.any() else None,
        **motion_numbers(found),
    }


def moved_on(found: Float, known: Float) -> float:
    """The mean correlation with the motion of other moments; a few seconds are too short to be shuffled."""
    far = round(FAR_S * FRAME_RATE)
    return _round(
        float(np.mean([pearson(np.roll(found, by), known) for by in range(far, len(found) - far + 1)]))
    )


def opened(material: Material, driver: PersonalDriver, visemes: Float, added: Float) -> Float:
    """The opening (T,) of the lips with something added (T, 52) to the general driver's mouth."""
    way = np.zeros((len(visemes), len(BLENDSHAPES)))
    way[:, CHANNELS] = driver.modes.general(visemes)
    return material.opened(np.clip(way + added[: len(way)], 0, 1))


def is_shut(material: Material, opening: Float) -> NDArray[np.bool_]:
    return np.asarray(opening <= rest_gap(material) + SHUT * fullest(material))


def rest_gap(material: Material) -> float:
    return float(material.opened(np.zeros((1, len(BLENDSHAPES))))[0])


def fullest(material: Material) -> float:
    """How far beyond rest the lips open at the fullest in the recording."""
    return float(np.percentile(recorded(material), 99)) - rest_gap(material)


def recorded(material: Material) -> Float:
    """The gap (T,) between the lips in the recording, as an avatar draws it."""
    way = np.zeros((len(material.mouth), len(BLENDSHAPES)))
    way[:, CHANNELS] = material.mouth
    return material.opened(way)


def motion_numbers(opening: Float) -> dict[str, float]:
    """Of a gap (T,) in cm: its deviation, and mean and 95th percentile of its speed in cm a second."""
    speed = np.abs(np.diff(opening)) * FRAME_RATE
    return {
        "deviation": _round(float(opening.std())),
        "speed_mean": _round(float(speed.mean())),
        "speed_p95": _round(float(np.percentile(speed, 95))),
    }


def moved_by_silence(driver: PersonalDriver) -> float:
    """The most that is added when nothing is heard."""
    return float(np.abs(offsets(driver, driven_by_whole_voice(np.zeros(3 * 16000, np.float32)))).max())


def bilabials(voice: NDArray[np.float32]) -> Float:
    """The middle (N,) of every m, b and p in English words of a voice (S,), s: recognized with a language model and
    aligned. What drives the mouth knows no words."""
    decoder, sound = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL"), as_pcm(voice)
    for aligns in (False, True):
        if aligns:
            decoder.set_alignment()
        decoder.start_utt()
        decoder.process_raw(sound, full_utt=True)
        decoder.end_utt()
    phones = [phone for word in decoder.get_alignment() for phone in word if phone.name in ("M", "B", "P")]
    return np.array([(phone.start + phone.duration / 2) / HOPS_PER_S for phone in phones])


def lips_meet(material: Material, driver: PersonalDriver, added: Float, said_s: Float) -> dict[str, Any]:
    """Shares of moments said_s (N,) at which lips nearly meet within a frame, and of all moments of speech."""
    _, visemes = sound_frames(material.articulation)
    is_speech = np.flatnonzero(speaking(visemes)[: len(material.mouth)] > 0.5)
    said = np.round(said_s * FRAME_RATE).astype(int)
    result: dict[str, Any] = {"said": len(said)}
    for name, opening in (
        ("recorded", recorded(material)),
        ("general", opened(material, driver, visemes, np.zeros_like(added))),
        ("personal", opened(material, driver, visemes, added)),
    ):
        least = minimum_filter1d(opening, 3) <= rest_gap(material) + MET * fullest(material)
        rows = said[(said >= 0) & (said < len(opening))]
        result[name] = {"met": _round(least[rows].mean()), "any_moment": _round(least[is_speech].mean())}
    return result


def spoken_text(material: Material, driver: PersonalDriver) -> dict[str, Any]:
    """A text in a synthetic voice that nobody learned from: lips on m, b and p and in pauses, and how much is added."""
    spoken = speak_text(" ".join(EXAM), "en-us")
    articulation = driven_by_text(spoken.phonemes, resampled(spoken.sound, 16000)[:, 0])
    _, visemes = sound_frames(articulation)
    added = offsets(driver, articulation)
    middles = [(p.start_s + p.end_s) / 2 for p in spoken.phonemes if visemes_of(p.symbol) == ("closed",)]
    rows = np.round(np.array(middles) * FRAME_RATE).astype(int)
    numbers: dict[str, Any] = {}
    for name, what in (("personal", added), ("general", np.zeros_like(added))):
        opening = opened(material, driver, visemes, what)
        shut = is_shut(material, opening)
        numbers[name] = {
            "shut_on_bilabials": _round(float(shut[rows].mean())),
            "shut_in_pauses": _round(float(shut[speaking(visemes) <= SILENT].mean())),
        }
    numbers["agreement_of_jaws"] = _round(
        pearson(opened(material, driver, visemes, added), opened(material, driver, visemes, 0 * added))
    )
    return numbers


def of_length(seconds: float, seed: int) -> dict[str, Any]:
    """A made-up person who speaks so long: what is learned of them, and how much could be."""
    material, without_noise = made_up(seconds, np.random.default_rng(seed))
    start = time.perf_counter()
    learned = learn(material)
    verdict = learned.verdict
    _, visemes = sound_frames(material.articulation)
    tail = np.arange(material.border, len(material.mouth))
    tail = tail[speaking(visemes[tail]) > 0.5]
    return {
        "seconds": seconds,
        "seed": seed,
        "speech_learned_s": _round(speech_seconds(material)[0]),
        "training_minutes": _round((time.perf_counter() - start) / 60),
        "kept": "personal" if verdict.is_better else "general",
        "held_out": {
            "general": _round(verdict.general.speaking),
            "personal": _round(verdict.personal.speaking),
        },
        "cross_validated": {
            "general": _round(verdict.cross_general.speaking),
            "personal": _round(verdict.cross.speaking),
        },
        "best_possible": _round(pearson(without_noise[tail], material.opening[tail])),
    }


def made_up(seconds: float, rng: np.random.Generator) -> tuple[Material, Float]:
    """Words that nobody has said, by a voice that no reader has learned from, and lips that make each viseme in their
    own way, late, slurred, and with motion that has nothing to do with speech; the opening (T,) without the latter."""
    voice, phonemes, pause = np.zeros(0, np.float32), [], np.zeros(round(0.4 * SAMPLE_RATE), np.float32)
    while len(voice) < seconds * SAMPLE_RATE:
        said, known = said_by_flite("slt", text(rng, "words"))
        begin = len(voice) / SAMPLE_RATE
        phonemes += [Phoneme(p.symbol, p.start_s + begin, p.end_s + begin) for p in known]
        voice = np.concatenate([voice, said, pause])
    voice = voice[: round(seconds * SAMPLE_RATE)]
    times = np.arange(0, len(voice) / SAMPLE_RATE, 1 / FRAME_RATE)
    true = gaussian_filter1d(viseme_weights(phonemes, times - OWN_LAG_S), OWN_BLUR_S * FRAME_RATE, axis=0)
    own = shapes() * np.exp(rng.normal(0, OWN_WAY, shapes().shape))
    own[:, CHANNELS] += 0.15 * rng.uniform(size=(len(own), len(CHANNELS))) * (own[:, CHANNELS] > 0)
    mouth = np.clip(true @ own, 0, 1)[:, CHANNELS]
    wander = gaussian_filter1d(rng.normal(size=mouth.shape), 3, axis=0)
    noisy = np.clip(mouth + WANDER * wander / wander.std(axis=0) * mouth.std(axis=0), 0, 1)

    def opened(way: Float) -> Float:
        return np.asarray(way @ _opening())

    def drawn(values: Float) -> Float:
        way = np.zeros((len(values), len(BLENDSHAPES)))
        way[:, CHANNELS] = values
        return opened(way)

    count = len(times)
    material = Material(
        driven_by_whole_voice(voice), noisy, np.ones(count, dtype=bool), drawn(noisy), round(0.8 * count),
        np.ones(len(CHANNELS)), opened,
    )  # fmt: skip
    return material, drawn(mouth)


def _opening() -> Float:
    """How far each expression (52,) moves the inner lips apart, roughly, in jaws."""
    parts = {
        "jawOpen": 1.0,
        "mouthLowerDown": 0.25,
        "mouthUpperUp": 0.25,
        "mouthClose": -1.0,
        "mouthPucker": -0.2,
    }
    return np.array([sum(v for part, v in parts.items() if name.startswith(part)) for name in BLENDSHAPES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument(
        "--lengths", type=float, nargs="*", default=[], help="seconds that made-up people speak"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a made-up person each")
    parser.add_argument("--tracks", type=Path, help="a folder in which tracks are kept between runs")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "speaking-personal",
        "protocol": "the last fifth of each clip is held out. opening: Pearson correlation over time of the gap "
        "between the lips with the recorded one, as in speaking.json; shuffled: mean of all shifts by 0.4 s and more; "
        "cross_validated: on the rest, each third by what did not see it; shut: the gap within 5 % of its fullest; "
        "bilabials: the share of m, b and p, by English words, at which it is within 10 % for a frame, and that of all "
        "moments; "
        "speed: of the gap, cm a second",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
    }
    if given.clips:
        result["clips"] = [measured(clip, given.tracks) for clip in given.clips]
    if given.lengths:
        result["made_up"] = {
            "way": OWN_WAY, "lag_s": OWN_LAG_S, "blur_s": OWN_BLUR_S, "wander": WANDER, "voice": "flite slt"
        }  # fmt: skip
        result["lengths"] = [of_length(length, seed) for length in given.lengths for seed in given.seeds]
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
