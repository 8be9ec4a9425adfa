"""What the inaudible mark of sounds costs, survives and claims: target T11, docs/marks.md explains the numbers.

    python benchmarks/audio_mark.py SOUND... --output benchmarks/results/audio-mark.json

Besides the sounds, whose names alone are kept, it takes voices of eSpeak NG and Flite where these are installed. Marked
sounds are first encoded as omokage releases them (AAC, 96 kbit/s), then changed, and read blindly: only the keys are
known. A part at a time with `--only`; parts that a result file already has are kept.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from reports import measure_parts
from scipy.signal import lfilter, resample_poly

from omokage.media.audio import read_audio
from omokage.trust.mark_pattern import PRIVATE_BITS, PUBLIC_BITS, PUBLIC_PAYLOAD, PUBLIC_SOUND_KEY, chips_of
from omokage.trust.mark_search import LEAST_PRIVATE_SCORE, LEAST_PUBLIC_SCORE, PRESENT, Key
from omokage.trust.sound_mark import SoundMarker, sound_key
from omokage.trust.sound_search import find_in_planes, find_in_sound
from omokage.trust.sound_signal import PHASES, folded, levels
from omokage.trust.video_mark import PUBLIC_SHARE, Mark, Profile

Float32 = NDArray[np.float32]
Sound = tuple[Float32, int]
SECONDS = 15.0
PUBLIC = Key(chips_of(PUBLIC_SOUND_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE)
PARTS = ("cost", "false_claims", "robustness", "robustness_high_assurance")
ENGLISH = (
    "Welcome to our booth. We are glad that you came by today. Please take a look at our new products, and ask us "
    "anything that you would like to know about them. The presentation begins at three o'clock in the main hall on "
    "the second floor, and there will be coffee and small cakes for everybody who comes. If you want to hear more "
    "about our research, please leave your name and your address at the desk."
)
GERMAN = (
    "Herzlich willkommen an unserem Stand. Wir freuen uns sehr, dass Sie heute gekommen sind. Bitte sehen Sie sich "
    "unsere neuen Produkte an, und fragen Sie uns alles, was Sie wissen wollen. Der Vortrag beginnt um drei Uhr im "
    "großen Saal im zweiten Stock, und es gibt Kaffee und Kuchen. Vielen Dank und einen schönen Tag."
)
JAPANESE = "ようこそ。きょうは おこしいただき ありがとうございます。" * 5
VOICES: dict[str, list[str]] = {
    "eSpeak NG en-us": ["espeak-ng", "-v", "en-us", "-w", "{file}", ENGLISH],
    "eSpeak NG en-gb+f3, slow": ["espeak-ng", "-v", "en-gb+f3", "-s", "140", "-w", "{file}", ENGLISH],
    "eSpeak NG de": ["espeak-ng", "-v", "de", "-w", "{file}", GERMAN],
    "eSpeak NG de+m5, low": ["espeak-ng", "-v", "de+m5", "-p", "30", "-w", "{file}", GERMAN],
    "eSpeak NG ja": ["espeak-ng", "-v", "ja", "-w", "{file}", JAPANESE],
    "Flite slt": ["flite", "-voice", "slt", "-t", ENGLISH, "-o", "{file}"],
    "Flite rms": ["flite", "-voice", "rms", "-t", ENGLISH, "-o", "{file}"],
    "Flite kal16": ["flite", "-voice", "kal16", "-t", ENGLISH, "-o", "{file}"],
}  # fmt: skip


def sources(paths: Sequence[Path]) -> dict[str, Sound]:
    """Name -> the first 15 s, one channel."""
    found: dict[str, Sound] = {}
    for path in paths:
        audio = read_audio(path)
        assert audio is not None and audio.samples.any(), f"{path} is silent"
        found[path.name] = np.ascontiguousarray(audio.samples.mean(axis=1, keepdims=True)), audio.sample_rate
    with tempfile.TemporaryDirectory() as folder:
        for name, command in VOICES.items():
            if shutil.which(command[0]):
                file = Path(folder) / "voice.wav"
                subprocess.run([part.format(file=file) for part in command], check=True)
                audio = read_audio(file)
                assert audio is not None
                found[name] = audio.samples, audio.sample_rate
    return {name: (sound[: round(SECONDS * rate)], rate) for name, (sound, rate) in found.items()}


def private(key: bytes) -> Key:
    return Key(chips_of(sound_key(key), PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)


def marked(sound: Sound, mark: Mark) -> Sound:
    marker = SoundMarker(mark, sound[1])
    return np.concatenate([marker.step(sound[0]), marker.rest()]), sound[1]


def draws(count: int, seed: int, profile: Profile) -> Iterable[Mark]:
    """Random payloads and keys."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield Mark(int(random.integers(0, 1 << PRIVATE_BITS)), random.bytes(32), profile)


# What is done to a sound


def encoded(sound: Sound, codec: str, kilobits: int) -> Sound:
    """Through a codec and back, one channel, with the codec's own padding."""
    samples, rate = sound
    kind = {"aac": "adts", "libmp3lame": "mp3", "libopus": "ogg", "pcm_mulaw": "wav"}[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=48000 if codec == "libopus" else rate, layout="mono")
        if codec != "pcm_mulaw":
            stream.bit_rate = 1000 * kilobits
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    buffer.seek(0)
    converter = av.AudioResampler(format="flt", layout="mono", rate=rate)
    with av.open(buffer) as container:
        pieces = [p.to_ndarray().ravel() for f in container.decode(audio=0) for p in converter.resample(f)]
    return np.concatenate(pieces)[:, None].astype(np.float32), rate


def aac(sound: Sound) -> Sound:
    return encoded(sound, "aac", 64)


def resampled(sound: Sound, rate: int) -> Sound:
    shared = int(np.gcd(sound[1], rate))
    return resample_poly(sound[0], rate // shared, sound[1] // shared).astype(np.float32), rate


def faster(sound: Sound, thousandths: int) -> Sound:
    return resample_poly(sound[0], 1000, 1000 + thousandths).astype(np.float32), sound[1]


def noisy(sound: Sound, below_db: float) -> Sound:
    noise = np.random.default_rng(0).normal(size=sound[0].shape)
    level = np.sqrt(np.mean(sound[0] ** 2)) * 10 ** (-below_db / 20)
    return (sound[0] + level * noise).astype(np.float32), sound[1]


def part(sound: Sound, start_s: float, seconds: float = SECONDS) -> Sound:
    samples, rate = sound
    return samples[round(start_s * rate) : round((start_s + seconds) * rate)], rate


def echoed(sound: Sound) -> Sound:
    """A wall 10 m away."""
    samples, rate = sound
    delay = round(0.06 * rate)
    return samples + 0.5 * np.pad(samples, ((delay, 0), (0, 0)))[: len(samples)], rate


def dulled(sound: Sound) -> Sound:
    """A low pass of first order at 1 kHz."""
    keep = np.exp(-2 * np.pi * 1000 / sound[1])
    return lfilter([1 - keep], [1, -keep], sound[0], axis=0).astype(np.float32), sound[1]


def quieter(sound: Sound, factor: float) -> Sound:
    return (np.rint(sound[0] * factor * 32768) / 32768).astype(np.float32), sound[1]


ATTACKS: dict[str, Callable[[Sound], Sound]] = {
    "as released": lambda s: s,
    "AAC 64 kbit/s": aac,
    "AAC 32 kbit/s": lambda s: encoded(s, "aac", 32),
    "AAC 64 kbit/s, three times": lambda s: aac(aac(aac(s))),
    "MP3 64 kbit/s": lambda s: encoded(s, "libmp3lame", 64),
    "Opus 24 kbit/s": lambda s: encoded(s, "libopus", 24),
    "16 kHz, AAC 64 kbit/s": lambda s: aac(resampled(s, 16000)),
    "8 kHz, mu-law (telephone)": lambda s: encoded(resampled(s, 8000), "pcm_mulaw", 64),
    "first 1.234 s cut off, AAC 64 kbit/s": lambda s: aac(part(s, 1.234)),
    "12 dB quieter, AAC 64 kbit/s": lambda s: aac(quieter(s, 0.25)),
    "low pass at 1 kHz, AAC 64 kbit/s": lambda s: aac(dulled(s)),
    "echo, AAC 64 kbit/s": lambda s: aac(echoed(s)),
    "noise 30 dB below, AAC 64 kbit/s": lambda s: aac(noisy(s, 30)),
    "noise 20 dB below, AAC 64 kbit/s": lambda s: aac(noisy(s, 20)),
    "noise 12 dB below, AAC 64 kbit/s": lambda s: aac(noisy(s, 12)),
    "8 s of it, AAC 64 kbit/s": lambda s: aac(part(s, 0.5, 8)),
    "5 s of it, AAC 64 kbit/s": lambda s: aac(part(s, 0.5, 5)),
    "3 s of it, AAC 64 kbit/s": lambda s: aac(part(s, 0.5, 3)),
    "0.2 % faster": lambda s: faster(s, 2),
    "1 % faster": lambda s: faster(s, 10),
}
T11 = "AAC 64 kbit/s"
OF_HIGH_ASSURANCE = (
    T11,
    "Opus 24 kbit/s",
    "noise 20 dB below, AAC 64 kbit/s",
    "noise 12 dB below, AAC 64 kbit/s",
    "5 s of it, AAC 64 kbit/s",
    "3 s of it, AAC 64 kbit/s",
)


# What is measured


def measure_cost(sounds: dict[str, Sound]) -> dict[str, Any]:
    rows = []
    for name, (samples, rate) in sounds.items():
        seconds = len(samples) / rate
        row: dict[str, Any] = {"sound": name, "rate_hz": rate, "seconds": _round(seconds)}
        for profile in ("standard", "high assurance"):
            mark = next(iter(draws(1, 1, profile)))  # type: ignore[arg-type]
            start = time.process_time()
            changed, _ = marked((samples, rate), mark)
            spent = time.process_time() - start
            row[profile] = {
                "snr_db": _round(10 * np.log10(np.sum(samples**2) / np.sum((changed - samples) ** 2))),
                "median_snr_of_20_ms_db": _round(np.median(_ratios(samples, changed, rate))),
                "rms_change_of_cells_db": _round(_cells(samples, changed, rate)),
                "peak_before": _round(np.abs(samples).max(), 4),
                "peak_after": _round(np.abs(changed).max(), 4),
                "embed_ms_per_second": _round(1000 * spent / seconds),
            }
        keys = [PUBLIC, private(mark.key)]
        start = time.process_time()
        find_in_sound(samples, rate, keys)
        row["search_ms_per_second"] = _round(1000 * (time.process_time() - start) / seconds)
        rows.append(row)
    return {
        "clock": "processor time of this process, one thread",
        "keys_searched": 2,
        **{
            profile: {
                name: _spread([row[profile][name] for row in rows])
                for name in (
                    "snr_db", "median_snr_of_20_ms_db", "rms_change_of_cells_db", "embed_ms_per_second"
                )
            }
            for profile in ("standard", "high assurance")
        },
        "search_ms_per_second": _spread([row["search_ms_per_second"] for row in rows]),
        "sounds": rows,
    }  # fmt: skip


def _ratios(sound: Float32, changed: Float32, rate: int) -> NDArray[np.float64]:
    size = round(0.02 * rate)
    count = len(sound) // size
    power, error = (
        (values[: count * size].astype(float) ** 2).reshape(count, size).sum(axis=1)
        for values in (sound, changed - sound)
    )
    heard = (error > 0) & (power > 1e-6 * power.max())
    return np.asarray(10 * np.log10(power[heard] / error[heard]))


def _cells(sound: Float32, changed: Float32, rate: int) -> float:
    """RMS of the change of level in windows of 20 ms and bands of 100 Hz that are heard (dB)."""
    before, after = levels(sound, rate), levels(changed, rate)
    heard = before > before.max() - 60
    return float(np.sqrt(np.mean((after - before)[heard] ** 2)))


def measure_robustness(
    sounds: dict[str, Sound], repeats: int, target_repeats: int, profile: Profile
) -> dict[str, Any]:
    attacks = list(ATTACKS) if profile == "standard" else list(OF_HIGH_ASSURANCE)
    trials: list[dict[str, Any]] = []
    for index, (name, sound) in enumerate(sounds.items()):
        for repeat, mark in enumerate(draws(max(repeats, target_repeats), 100 + index, profile)):
            leaving = encoded(marked(sound, mark), "aac", 96)
            keys = [PUBLIC, private(mark.key)]
            for attack in attacks if repeat < repeats else [T11]:
                samples, rate = ATTACKS[attack](leaving)
                public, own = find_in_sound(samples, rate, keys)
                trials.append(
                    {
                        "sound": name,
                        "attack": attack,
                        "public": public.payload == PUBLIC_PAYLOAD,
                        "private": own.payload == mark.render_id,
                        "wrong": int(public.payload not in (None, PUBLIC_PAYLOAD))
                        + int(own.payload not in (None, mark.render_id)),
                        "z": _round(max(public.z, own.z)),
                        "public_score": _round(public.score),
                        "private_score": _round(own.score),
                    }
                )
            chips_of.cache_clear()
        print(profile, name, sum(t["private"] for t in trials), "of", len(trials), flush=True)
    return {
        "rule": f"private: CRC and score >= {LEAST_PRIVATE_SCORE}; public: CRC and score >= {LEAST_PUBLIC_SCORE}",
        "target": {"T11": T11},
        "wrong_payloads_accepted": sum(trial["wrong"] for trial in trials),
        "attacks": [_tally(attack, [t for t in trials if t["attack"] == attack]) for attack in attacks],
        "trials": trials,
    }


def _tally(attack: str, trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return (
        {"attack": attack, "n": len(trials)}
        | {name: sum(t[name] for t in trials) for name in ("public", "private")}
        | {f"least_{name}": min(t[name] for t in trials) for name in ("z", "public_score", "private_score")}
    )


def measure_false_claims(sounds: dict[str, Sound], keys: int) -> dict[str, Any]:
    """Wrong keys in windows of 15, 5 and 2 s of sounds without a mark, and of sounds with that of another key."""
    random = np.random.default_rng(9)
    noise = random.normal(0, 0.1, (15 * 16000, 1)).astype(np.float32)
    tone = np.sin(np.arange(15 * 16000) * 2 * np.pi * 220 / 16000)[:, None].astype(np.float32)
    made = {"white noise": noise, "a tone": tone, "clicks": np.asarray(tone > 0.9999, np.float32)}
    plain = sounds | {name: (samples, 16000) for name, samples in made.items()}
    windows: list[tuple[bool, list[Float32]]] = []
    for sound in plain.values():
        other = marked(sound, next(iter(draws(1, 3, "standard"))))
        for has_mark, one in ((False, sound), (True, other)):
            for seconds in (15.0, 5.0, 2.0):
                rows = levels(*part(one, 0.3, seconds))
                windows.append((has_mark, [folded(rows, phase) for phase in range(PHASES)]))
    public = [find_in_planes(planes, [PUBLIC])[0] for has_mark, planes in windows if not has_mark]
    result: dict[str, Any] = {
        "windows": len(windows),
        "public_key_on_unmarked": {
            "n": len(public),
            "accepted": sum(one.payload is not None for one in public),
            "present": sum(one.is_present for one in public),
            "z": _spread([one.z for one in public]),
            "score": _spread([one.score for one in public]),
        },
    }
    for kind, bits, least in (
        ("private", PRIVATE_BITS, LEAST_PRIVATE_SCORE),
        ("public", PUBLIC_BITS, LEAST_PUBLIC_SCORE),
    ):
        seen = []
        for number in range(keys):
            key = Key(chips_of(random.bytes(32), bits), 1.0, least)
            chips_of.cache_clear()
            seen += [find_in_planes(planes, [key])[0] for _, planes in windows[number % 3 :: 3]]
        result[f"wrong_{kind}_keys"] = {
            "what": "a wrong key in one window, the best of 3072 places; the three best are decoded",
            "n": len(seen),
            "n_decoded": 3 * len(seen),
            "accepted": sum(one.payload is not None for one in seen),
            "z_at_least_present": sum(one.z >= PRESENT for one in seen),
            "score_at_least_accepted": sum(one.score >= least for one in seen),
            "z": _spread([one.z for one in seen]),
            "score": _spread([one.score for one in seen]),
        }
        print(kind, result[f"wrong_{kind}_keys"], flush=True)
    return result


def _spread(values: Sequence[float]) -> dict[str, float]:
    array = np.asarray(values)
    return {
        "min": _round(array.min()),
        "median": _round(np.median(array)),
        "mean": _round(array.mean()),
        "sd": _round(array.std()),
        "max": _round(array.max()),
    }


def _round(value: Any, digits: int = 2) -> float:
    return round(float(value), digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sounds", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=2, help="marks for each sound")
    parser.add_argument("--target-repeats", type=int, default=12, help="marks for each sound, for T11")
    parser.add_argument("--keys", type=int, default=300, help="wrong keys of each kind")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    sounds = sources(arguments.sounds)
    repeats = arguments.repeats, arguments.target_repeats
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "cost": lambda: measure_cost(sounds),
        "false_claims": lambda: measure_false_claims(sounds, arguments.keys),
        "robustness": lambda: measure_robustness(sounds, *repeats, "standard"),
        "robustness_high_assurance": lambda: measure_robustness(
            sounds, arguments.repeats, 0, "high assurance"
        ),
    }
    measure_parts(arguments.output, "audio mark", parts, arguments.only)


if __name__ == "__main__":
    main()
