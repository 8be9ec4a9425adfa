"""Learns the small network that reads mouth shapes from a voice, from synthetic voices with known phonemes.

    python scripts/learn_voice_reader.py src/omokage/speaking/data/voice_reader.safetensors

Needs eSpeak NG, and flite for the voices that are held out of training; both are among the distribution's packages.
Nobody's recording is used. Prints the agreement with the known mouth on the held-out voices.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.signal import fftconvolve, resample_poly
from torch.nn import functional as F

from omokage.media.audio import read_audio
from omokage.speaking.hearing import HOPS_PER_S, hear
from omokage.speaking.phonemes import Phoneme, viseme_weights
from omokage.speaking.reader import CONTEXT, windows
from omokage.speaking.voices import EspeakVoice
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.tracking.visemes import NAMES

Float32 = NDArray[np.float32]

LANGUAGES = (
    "en-us",
    "en-gb",
    "de",
    "fr-fr",
    "es",
    "it",
    "pt-br",
    "pl",
    "nl",
    "sv",
    "tr",
    "cs",
    "fi",
    "ja",
    "id",
    "hu",
)
VARIANTS = ("", "+m1", "+m3", "+m4", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5")
SPEAKERS = 300
SECONDS_OF_NOISE = 6.0
HIDDEN = (96, 64)
STEPS, BATCH, RATE = 10000, 512, 2e-3
FLITE = ("slt", "rms", "awb", "kal16")
# As the synthesizer of flite names phonemes (CMU's set), in IPA.
CMU = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "ay": "aɪ", "b": "b", "ch": "tʃ", "d": "d",
    "dh": "ð", "eh": "ɛ", "er": "ɜ", "ey": "eɪ", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ", "iy": "i", "jh": "dʒ",
    "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ",
    "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ", "pau": "",
}  # fmt: skip
SENTENCES = (
    "Please bring my brother the blue paper before five.",
    "Welcome to our booth, we are happy to show you what is new.",
    "Many people move to bigger towns because of work.",
    "She saw the sea, and the boats were far away.",
    "A quick brown fox jumps over the lazy dog while we watch.",
    "How much wood would you need to build a small bridge?",
)
# Said by the held-out voices only.
EXAM = (
    "Every morning the baker opens his shop at half past four.",
    "Our museum is free on Mondays, but please leave your umbrella at the door.",
    "The pilot showed a map of the valley to a group of thirty visitors.",
    "If you press the round button, a lamp will turn blue and music begins.",
    "They moved the old piano through a narrow window with rope and patience.",
    "What would you like for lunch, bread with cheese or warm vegetable soup?",
)
SYLLABLES = tuple(
    c + v + e
    for c in ("m", "b", "p", "f", "v", "s", "t", "d", "n", "l", "r", "k", "g", "h", "j", "z", "")
    for v in ("a", "e", "i", "o", "u")
    for e in ("", "", "n", "m", "s", "l")
)


def text(rng: np.random.Generator, language: str) -> str:
    """A sentence of English, or words that nobody has said, with pauses."""
    if language.startswith("en") and rng.random() < 0.5:
        return " ".join(rng.choice(SENTENCES, 2))
    words = ["".join(rng.choice(SYLLABLES, int(rng.integers(1, 4)))) for _ in range(18)]
    return " ".join(
        word + ("," if rng.random() < 0.15 else "." if rng.random() < 0.1 else "") for word in words
    )


def at_rate(samples: Float32, rate: int) -> Float32:
    step = int(np.gcd(SAMPLE_RATE, rate))
    return np.asarray(resample_poly(samples, SAMPLE_RATE // step, rate // step), dtype=np.float32)


def worn(voice: Float32, rng: np.random.Generator) -> Float32:
    """The voice through another microphone, in a room, with noise, at another loudness."""
    spectrum = np.fft.rfft(voice)
    at = np.linspace(0, 1, len(spectrum))
    curve = np.interp(at**0.5, np.linspace(0, 1, 8), rng.normal(0, 5, 8)) + rng.normal(0, 6) * (0.5 - at)
    if rng.random() < 0.15:  # a telephone
        curve[at > 3400 / 8000] -= 40
    voice = np.fft.irfft(spectrum * 10 ** (curve / 20), len(voice)).astype(np.float32)
    if rng.random() < 0.6:
        length = int(rng.uniform(0.03, 0.35) * SAMPLE_RATE)
        tail = rng.normal(size=length) * np.exp(-5 * np.arange(length) / length)
        room = np.concatenate([[1.0], rng.uniform(0.02, 0.12) * tail])
        voice = fftconvolve(voice, room)[: len(voice)].astype(np.float32)
    noise = rng.normal(size=len(voice)).astype(np.float32)
    if rng.random() < 0.5:
        noise = fftconvolve(noise, 0.97 ** np.arange(60), mode="same").astype(np.float32)
    power = np.sqrt(np.mean(voice**2)) + 1e-6
    voice = voice + noise * power / (noise.std() + 1e-6) * 10 ** (-rng.uniform(12, 50) / 20)
    return np.asarray(
        voice / (np.abs(voice).max() + 1e-6) * 10 ** (-rng.uniform(1, 25) / 20), dtype=np.float32
    )


def example(voice: Float32, phonemes: tuple[Phoneme, ...]) -> tuple[Float32, Float32]:
    """Windows of bands (N, C) and the mouth's viseme weights (N, 10)."""
    heard = hear(voice)
    middles = (np.arange(len(heard)) + 0.5) / HOPS_PER_S
    return windows(heard.bands), viseme_weights(phonemes, middles).astype(np.float32)


def synthetic(rng: np.random.Generator) -> list[tuple[Float32, Float32]]:
    examples, espeak = [], EspeakVoice()
    for _ in range(SPEAKERS):
        language = str(rng.choice(LANGUAGES))
        spoken = espeak.synthesize(text(rng, language), language + str(rng.choice(VARIANTS)))
        voice = at_rate(spoken.sound.samples[:, 0], spoken.sound.sample_rate)
        stretch = rng.uniform(0.85, 1.15)  # pitch, formants and pace together
        voice = at_rate(voice, round(SAMPLE_RATE * stretch / 100) * 100)
        pace = 100 * round(SAMPLE_RATE * stretch / 100) / SAMPLE_RATE
        phonemes = tuple(Phoneme(p.symbol, p.start_s / pace, p.end_s / pace) for p in spoken.phonemes)
        examples.append(example(worn(voice, rng), phonemes))
    count = int(SECONDS_OF_NOISE * SAMPLE_RATE)
    for _ in range(SPEAKERS // 8):  # noise, and music of a kind: the mouth rests
        time_s = np.arange(count) / SAMPLE_RATE
        chords = np.zeros(count)
        for start in np.arange(0, SECONDS_OF_NOISE, 0.4):
            tones = 110 * 2 ** (rng.integers(0, 36, 3) / 12)
            inside = np.exp(-3 * np.maximum(time_s - start, 0)) * (time_s >= start)
            chords += inside * sum(np.sin(2 * np.pi * tone * time_s) for tone in tones)
        sound = (rng.random() < 0.5) * chords + rng.uniform(0, 0.5) * rng.normal(size=count)
        examples.append(example(worn(sound.astype(np.float32), rng), ()))
    return examples


def held_out() -> dict[str, tuple[Float32, Float32]]:
    """Flite's voices, learned from real people, on sentences with known phonemes."""
    result = {}
    for name in FLITE:
        examples = [example(*said_by_flite(name, sentence)) for sentence in EXAM]
        result[name] = (np.concatenate([x for x, _ in examples]), np.concatenate([y for _, y in examples]))
    return result


def said_by_flite(name: str, sentence: str) -> tuple[Float32, tuple[Phoneme, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voice.wav"
        command = ["flite", "-voice", name, "-psdur", "-t", sentence, "-o", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        sound = read_audio(path, sample_rate=SAMPLE_RATE)
    assert sound is not None
    phonemes, start = [], 0.0
    for item in said.split():
        symbol, stop = item.split(":")
        phonemes.append(Phoneme(CMU[symbol], start, float(stop)))
        start = float(stop)
    return sound.samples.mean(axis=1), tuple(phonemes)


def learn(examples: list[tuple[Float32, Float32]], seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    inputs = torch.from_numpy(np.concatenate([x for x, _ in examples]))
    wanted = torch.from_numpy(np.concatenate([y for _, y in examples]))
    sizes = (inputs.shape[1], *HIDDEN, len(NAMES))
    layers: list[torch.nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,))
        noisy = inputs[rows] + 0.03 * torch.randn(BATCH, inputs.shape[1])
        loss = F.cross_entropy(network(noisy), wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    examples = synthetic(np.random.default_rng(given.seed))
    print(f"{sum(len(x) for x, _ in examples) / HOPS_PER_S / 60:.1f} minutes, context {CONTEXT} hops")
    network = learn(examples, given.seed).eval()
    for name, (x, y) in held_out().items():
        with torch.no_grad():
            found = F.softmax(network(torch.from_numpy(x)), dim=1).numpy()
        r = [np.corrcoef(found[:, i], y[:, i])[0, 1] for i in range(len(NAMES))]
        print(name, " ".join(f"{n} {v:.2f}" for n, v in zip(NAMES, r, strict=True)))
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    tensors = {f"{i}.{key}": value.numpy().astype(np.float16)
               for i, layer in enumerate(linear) for key, value in layer.state_dict().items()}  # fmt: skip
    save_file(tensors, given.output, {"format": "omokage.voice_reader", "visemes": ",".join(NAMES)})


if __name__ == "__main__":
    main()
