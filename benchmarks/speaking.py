"""How well and how fast an avatar speaks: lips from the sound alone against known and real mouths, beside controls.

    python benchmarks/speaking.py CLIP... --output benchmarks/results/speaking.json

Each CLIP is a recording of one person who speaks; its mouth is tracked and compared with what the general driver makes
of its sound, live and as a whole. Voices of flite (from the distribution's packages), which the reader never heard,
have known phonemes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reports import command

from omokage.media.decode import probe, read_frames
from omokage.metrics.talking import Track, lag_curve, mouth_opening, pearson
from omokage.pipelines.bench import machine
from omokage.pipelines.recording import MAX_SIDE_PX
from omokage.pipelines.speak import speak
from omokage.pipelines.speech_track import read_speech, resampled
from omokage.pipelines.stand_in import agree_for_nobody, stand_in
from omokage.render.retarget import JAW
from omokage.speaking.driver import driven_by_voice, motion
from omokage.speaking.hearing import HOPS_PER_S
from omokage.speaking.phone_reader import driven_by_whole_voice
from omokage.speaking.phonemes import viseme_weights
from omokage.speaking.voices import speak_text
from omokage.tracking.tracker import track_clip
from omokage.tracking.visemes import NAMES, shapes
from omokage.trust.consent import Medium

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from learn_voice_reader import EXAM, FLITE, said_by_flite

TEXT = " ".join(EXAM)
REPEATS = 5
VIDEO_REPEATS = 3
OFF_S = 0.2
WAYS = {"live": driven_by_voice, "whole": driven_by_whole_voice}


def against(found: Track, known: Track, rate: float) -> dict[str, Any]:
    """Correlation of two openings (T,) at a rate, and controls: the sound shuffled in seconds, or a fifth off."""
    curve = lag_curve(found, known, rate, 0.4)
    seconds = np.array_split(np.arange(len(found)), max(2, int(len(found) / rate)))
    mixed = np.concatenate([seconds[i] for i in np.random.default_rng(0).permutation(len(seconds))])
    return {
        "r": _round(curve.at_zero),
        "r_peak": _round(float(np.nanmax(curve.r))) if np.isfinite(curve.r).any() else None,
        "peak_s": _round(curve.peak_s),
        "shuffled": _round(pearson(found[mixed], known)),
        "early": _round(pearson(np.roll(found, -round(OFF_S * rate)), known)),
        "late": _round(pearson(np.roll(found, round(OFF_S * rate)), known)),
    }


def unseen_voices() -> list[dict[str, Any]]:
    """Flite's voices: the jaw from the sound against the jaw from the phonemes; live, by the reader alone, and of a
    whole voice, by phones too."""
    rows = []
    for name in FLITE:
        said = [said_by_flite(name, sentence) for sentence in EXAM]
        known = np.concatenate([_known(voice, phonemes) for voice, phonemes in said])
        row: dict[str, Any] = {"voice": name}
        for way, read in WAYS.items():
            row[way] = _read_lips(np.concatenate([read(voice).visemes for voice, _ in said]), known)
        rows.append(row)
    return rows


def _read_lips(found: NDArray[np.float64], known: NDArray[np.float64]) -> dict[str, Any]:
    """Viseme weights (N, 10) against those that are known."""
    jaw = [(weights @ shapes())[:, JAW] for weights in (found, known)]
    lips, pause = NAMES.index("closed"), known[:, NAMES.index("rest")] > 0.95
    return {
        "jaw": against(*jaw, HOPS_PER_S),
        "closed_r": _round(pearson(found[:, lips], known[:, lips])),
        "shut_on_bilabials": _round(float((found[known[:, lips] > 0.75, lips] > 0.5).mean())),
        "shut_in_pauses": _round(float((jaw[0][pause] < 0.05).mean())),
    }


def _known(voice: NDArray[np.float32], phonemes: Any) -> NDArray[np.float64]:
    return viseme_weights(phonemes, (np.arange(-(-len(voice) // 160)) + 0.5) / HOPS_PER_S)


def real_mouth(clip: Path) -> dict[str, Any]:
    """The general driver against the recording's own mouth, all of it (nothing was learned from it)."""
    speech, info = read_speech(clip), probe(clip)
    track = track_clip(read_frames(clip, max_side=MAX_SIDE_PX))
    rate = float(info.frame_rate)
    opening = mouth_opening(track.landmarks.astype(np.float64))
    row: dict[str, Any] = {"clip": clip.name, "seconds": _round(len(track) / rate)}
    for way, read in WAYS.items():
        articulation = read(speech.voice)
        made = motion(articulation, len(track) / rate, rate).expression[: len(track), JAW].astype(np.float64)
        row[way] = {
            "share_of_speech": _round(float((articulation.visemes[:, 0] < 0.5).mean())),
            "opening": against(made, opening, rate),
            "jaw": against(made, track.expression[:, JAW].astype(np.float64), rate),
        }
    return row


def speed() -> dict[str, Any]:
    """Seconds of work for a second of speech: motion alone, and sound to video at 256, of a stand-in's avatar."""
    spoken = speak_text(TEXT, "en-us")
    voice = resampled(spoken.sound, 16000)[:, 0]
    seconds = len(voice) / 16000
    person = stand_in(256).avatar
    agree_for_nobody(Medium(person.provenance.recording_sha256, person.provenance.recording_name))
    motions, videos = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        motion(driven_by_whole_voice(voice), seconds, 25.0)
        motions.append((time.perf_counter() - start) / seconds)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "voice.wav"
        with wave.open(str(sound), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(np.round(voice * 32767).astype("<i2").tobytes())
        for repeat in range(VIDEO_REPEATS):
            start = time.perf_counter()
            speak(person, output=Path(folder) / f"{repeat}.mp4", audio=sound)
            videos.append((time.perf_counter() - start) / seconds)
    return {"seconds_of_speech": _round(seconds), "motion": _spread(motions), "video_256": _spread(videos)}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": _round(statistics.median(values)),
        "min": _round(min(values)),
        "max": _round(max(values)),
    }


def _round(value: float) -> float:
    return round(float(value), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "speaking",
        "protocol": "Pearson correlation over time at no lag; r_peak, peak_s: the best lag within 0.4 s (above 0: the "
        "real mouth comes later); early, late: the sound 0.2 s off; speed: seconds of work for a second of speech",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
    }
    try:
        result["unseen_voices"] = unseen_voices()
    except (OSError, subprocess.CalledProcessError) as error:
        result["unseen_voices"] = f"flite is missing: {error}"
    result["clips"] = [real_mouth(clip) for clip in given.clips]
    result["speed"] = speed()
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
